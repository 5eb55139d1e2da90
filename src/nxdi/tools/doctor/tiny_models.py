"""A tiny random model of every architecture that the library has, as a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nxdi.runtime.checkpoint import write_safetensors

VOCAB_SIZE = 61

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
_WINDOWS = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
_DBRX = {
    "d_model": 32,
    "attn_config": {"kv_n_heads": 2, "clip_qkv": 4.0, "rope_theta": 10000.0},
    "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
}
_DEEPSEEK_V3 = {
    **{"num_key_value_heads": 4, "q_lora_rank": 24, "kv_lora_rank": 16},
    **{"qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 12},
    **{"first_k_dense_replace": 1, "n_routed_experts": 4, "num_experts_per_tok": 2},
    **{"n_group": 2, "topk_group": 1, "moe_intermediate_size": 24},
}
# architecture -> what its config says besides the shape
MODELS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {"model_type": "llama"},
    "Llama4ForCausalLM": {
        **{"model_type": "llama4_text", "head_dim": 8, "intermediate_size_mlp": 48},
        **{"moe_layers": [], "no_rope_layers": [1, 0], "attention_chunk_size": 8},
        "floor_scale": 4,
    },
    "MistralForCausalLM": {"model_type": "mistral", "sliding_window": 8},
    "Qwen2ForCausalLM": {"model_type": "qwen2"},
    "Qwen3ForCausalLM": {"model_type": "qwen3", "head_dim": 12},
    "Gemma2ForCausalLM": {"model_type": "gemma2", "head_dim": 8, **_WINDOWS},
    "Gemma3ForCausalLM": {"model_type": "gemma3_text", "head_dim": 8, **_WINDOWS},
    "GraniteForCausalLM": {"model_type": "granite", "attention_multiplier": 0.4},
    "Olmo2ForCausalLM": {"model_type": "olmo2"},
    "Phi3ForCausalLM": {"model_type": "phi3"},
    "Cohere2ForCausalLM": {"model_type": "cohere2", "logit_scale": 0.4, **_WINDOWS},
    "GPT2LMHeadModel": {"model_type": "gpt2", "n_inner": 48, "n_positions": 64},
    "GPTNeoXForCausalLM": {"model_type": "gpt_neox"},
    "Glm4ForCausalLM": {"model_type": "glm4", "head_dim": 8},
    "SmolLM3ForCausalLM": {"model_type": "smollm3", "no_rope_layers": [1, 0]},
    "MixtralForCausalLM": {"model_type": "mixtral", "num_local_experts": 4},
    "Qwen3MoeForCausalLM": {"model_type": "qwen3_moe", "moe_intermediate_size": 24, **_EXPERTS},
    "OlmoeForCausalLM": {"model_type": "olmoe", **_EXPERTS},
    "DbrxForCausalLM": {"model_type": "dbrx", **_DBRX},
    "DeepseekV3ForCausalLM": {"model_type": "deepseek_v3", **_DEEPSEEK_V3},
    "GptOssForCausalLM": {
        "model_type": "gpt_oss",
        "head_dim": 8,
        "num_local_experts": 4,
        **_WINDOWS,
    },
}


def write_model(folder: Path, architecture: str) -> None:
    """A model whose weights are wide enough that its tokens depend on all of it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**{**_SHAPE, **MODELS[architecture]})
    config.architectures = [architecture]
    config.save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    model: nn.Module = AutoModelForCausalLM.from_config(config)
    weights = {name: _draw(name, w, generator) for name, w in model.state_dict().items()}
    write_safetensors(folder / "model.safetensors", weights)


def _draw(name: str, weight: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(weight.shape, generator=generator)
    if name.endswith("bias"):
        return 0.3 * noise
    return noise * 1.6 / weight.shape[-1] ** 0.5 if weight.dim() > 1 else 1 + 0.1 * noise
