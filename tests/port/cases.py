"""The ported models of this folder: the tiny transformers model each is compared with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import transformers

from golden.parity import (
    BUCKETS,
    Reference,
    check_reference,
    continue_prompts,
    make_prompts,
)
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from tiny_models import VOCAB_SIZE, drawn_wide, save_tiny


@dataclass(frozen=True)
class Case:
    """A port: `module` of this folder has `port_cls`; transformers has `hf` + Config, ForCausalLM.

    sizes: of the tiny model. hub: what config.json says in the dialect of published checkpoints,
    for ports that read the file themselves. seed: one with which the reference is decisive.
    """

    module: str
    port_cls: str
    hf: str
    sizes: Mapping[str, Any]
    hub: Mapping[str, Any] = field(default_factory=dict)
    head: str = "ForCausalLM"
    seed: int = 0
    embedding: float = 1.0
    sequence_parallel: bool = False

    @property
    def name(self) -> str:
        return self.module.removesuffix("_port")

    @property
    def app_cls(self) -> type[NeuronBaseForCausalLM]:
        found: type[NeuronBaseForCausalLM] = getattr(
            import_module(f"port.{self.module}"), self.port_cls
        )
        return found

    def make_reference(self, folder: Path, lengths: Sequence[int]) -> Reference:
        """Save the tiny model to `folder` and let transformers continue prompts."""
        config = getattr(transformers, f"{self.hf}Config")(**{**_COMMON, **self.sizes})
        model_cls = getattr(transformers, f"{self.hf}{self.head}")
        model = drawn_wide(model_cls(config), self.seed)
        model.get_input_embeddings().weight.data.mul_(self.embedding)
        save_tiny(model, folder)
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **self.hub}))
        model = model_cls.from_pretrained(folder, dtype=torch.float32)
        reference = Reference(folder, "float32", make_prompts(lengths, self.seed), {}, {})
        continue_prompts(model, reference, lengths)
        check_reference(reference)
        return reference

    def make_app(self, folder: Path, **options: Any) -> NeuronBaseForCausalLM:
        """The port, as its tests would make it; `options` are NeuronConfig keywords."""
        config_cls = self.app_cls.get_config_cls()
        options = {"backend": "eager", "torch_dtype": torch.float32, **BUCKETS, **options}
        neuron_config = config_cls.get_neuron_config_cls()(batch_size=3, **options)
        if hasattr(self.app_cls, "from_pretrained"):
            made: NeuronBaseForCausalLM = self.app_cls.from_pretrained(str(folder), neuron_config)
            return made
        config = config_cls.from_pretrained(str(folder), neuron_config=neuron_config)
        return self.app_cls(str(folder), config)

    def load_app(self, folder: Path, **options: Any) -> NeuronBaseForCausalLM:
        """`make_app`, compiled and loaded."""
        app = self.make_app(folder, **options)
        app.compile(folder / "artifact", progress=False)
        app.load(folder / "artifact")
        return app


_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
_SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
_GROUPED = {**_SIZES, "num_key_value_heads": 2}


def _partial(factor: float, theta: float = 10000.0) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": factor}


def _rope(theta: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta}


CASES = (
    Case(
        "gpt2_port",
        "NeuronGPT2ForCausalLM",
        "GPT2",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, "tie_word_embeddings": True},
        head="LMHeadModel",
        seed=5,
        sequence_parallel=True,
        embedding=0.25,
    ),
    Case(
        "opt_port",
        "NeuronOPTForCausalLM",
        "OPT",
        {**_SIZES, "ffn_dim": 112, "word_embed_proj_dim": 64, "tie_word_embeddings": True},
        embedding=0.25,
    ),
    Case(
        "neox_port",
        "NeuronGPTNeoXForCausalLM",
        "GPTNeoX",
        {**_SIZES, "rope_parameters": _partial(0.5, 1000.0)},
        hub={"rotary_pct": 0.5, "rotary_emb_base": 1000},
        seed=3,
    ),
    Case(
        "phi_port",
        "NeuronPhiForCausalLM",
        "Phi",
        {**_GROUPED, "rope_parameters": _partial(0.5), "partial_rotary_factor": 0.5},
        seed=9,
    ),
    Case("olmo2_port", "NeuronOlmo2ForCausalLM", "Olmo2", _SIZES, seed=2, sequence_parallel=True),
    Case(
        "granite_port",
        "NeuronGraniteForCausalLM",
        "Granite",
        {
            **_GROUPED,
            "tie_word_embeddings": True,
            "embedding_multiplier": 6.0,
            "attention_multiplier": 0.17,
            "residual_multiplier": 0.6,
            "logits_scaling": 2.0,
        },
        seed=7,
        sequence_parallel=True,
        embedding=0.25,
    ),
    Case(
        "stablelm_port",
        "NeuronStableLmForCausalLM",
        "StableLm",
        {
            **_GROUPED,
            "use_qkv_bias": True,
            "rope_parameters": _partial(0.25, 5000.0),
            "partial_rotary_factor": 0.25,
        },
        hub={"rope_theta": 5000.0, "partial_rotary_factor": 0.25},
    ),
    Case(
        "smollm3_port",
        "NeuronSmolLM3ForCausalLM",
        "SmolLM3",
        {
            **_GROUPED,
            "num_hidden_layers": 5,
            "no_rope_layer_interval": 4,
            "rope_parameters": _rope(20000.0),
        },
        sequence_parallel=True,
    ),
    Case(
        "falcon_port",
        "NeuronFalconForCausalLM",
        "Falcon",
        {
            "hidden_size": 71 * 4,
            "num_attention_heads": 71,
            "num_hidden_layers": 2,
            "tie_word_embeddings": True,
        },
        seed=3,
        embedding=0.25,
    ),
    Case(
        "gemma_port",
        "NeuronGemmaForCausalLM",
        "Gemma",
        {**_SIZES, "num_key_value_heads": 1, "head_dim": 24},
        sequence_parallel=True,
    ),
    Case(
        "cohere2_port",
        "NeuronCohere2ForCausalLM",
        "Cohere2",
        {
            **_GROUPED,
            "num_hidden_layers": 4,
            "sliding_window": 24,
            "logit_scale": 0.5,
            "tie_word_embeddings": True,
        },
        sequence_parallel=True,
    ),
    Case(
        "starcoder2_port",
        "NeuronStarcoder2ForCausalLM",
        "Starcoder2",
        {**_GROUPED, "sliding_window": 24, "rope_parameters": _rope(3000.0)},
        hub={"rope_theta": 3000.0},
        seed=14,
        sequence_parallel=True,
    ),
    Case(
        "qwen3_moe_port",
        "NeuronQwen3MoeForCausalLM",
        "Qwen3Moe",
        {
            **_GROUPED,
            "head_dim": 24,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 40,
            "norm_topk_prob": True,
            "rope_parameters": _rope(10000.0),
        },
        hub={"num_experts": 8, "rope_theta": 10000.0},
        seed=1,
        sequence_parallel=True,
    ),
)
BY_NAME = {case.name: case for case in CASES}
