"""Which DeepSeek-V3 configs and checkpoints are served, and what their caches take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nxdi.errors import ConfigError, WeightError
from nxdi.models.auto import AutoModelForCausalLM
from nxdi.modules.mlp import GatedMLP
from nxdi.modules.moe import MoE
from nxdi.modules.rope import InterleavedRotaryEmbedding
from nxdi.tools.accuracy.layers import find_divergence
from nxdi.tools.accuracy.report import random_prompts
from nxdi.tools.model_info import describe_model
from nxdi.tools.quantization import quantize_folder
from nxdi.types import Phase
from tiny_models import VOCAB_SIZE, load_app, make_app, save_tiny, tiny_hf_model

SHORT: dict[str, Any] = {"seq_len": 32, "max_context_length": 16}
PROMPT = torch.arange(1, 12)[None] * 7 % VOCAB_SIZE
LAYERS, RANK, ROPE, FLOAT = 2, 40, 8, 4  # of the tiny model, and bytes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tiny_hf_model("deepseek"), tmp_path_factory.mktemp("model"))


def changed(folder: Path, target: Path, **changes: Any) -> Path:
    """A copy whose config.json has other values."""
    target.mkdir()
    (target / "model.safetensors").symlink_to(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **changes}))
    return target


# Memory.


@pytest.mark.parametrize("tp_degree", [1, 2, 4])
def test_the_cache_is_that_of_latents_on_every_rank(tp_degree: int, folder: Path) -> None:
    app = load_app(folder, batch_size=3, tp_degree=tp_degree, **SHORT)
    places = 3 * (32 + 1)  # one more in each row takes padding
    expected = LAYERS * places * (RANK + ROPE) * FLOAT
    for rank in app.runner.executables:
        assert sum(cache.nbytes for cache in rank.caches) == expected
    assert describe_model(app).cache_bytes == expected


def test_the_blocks_that_a_memory_holds(folder: Path) -> None:
    block = LAYERS * 8 * (RANK + ROPE) * FLOAT
    paged = {"is_block_kv_layout": True, "pa_block_size": 8, **SHORT}
    app = make_app(folder, kv_cache_memory_bytes=11 * block + 1, **paged)
    assert app.neuron_config.pa_num_blocks == 10  # and one that takes padding
    assert describe_model(app).cache_bytes == 11 * block


def test_a_float8_cache_takes_a_quarter(folder: Path) -> None:
    app = load_app(folder, kv_cache_quant=True, **SHORT)
    plain = load_app(folder, **SHORT)
    assert 4 * describe_model(app).cache_bytes == describe_model(plain).cache_bytes
    logits = [model(PROMPT).logits[0, -1] for model in (app, plain)]
    assert 0 < float((logits[0] - logits[1]).abs().max()) < 2
    step = {"position_ids": torch.tensor([[11]])}
    logits = [model(torch.tensor([[3]]), **step).logits[0, -1] for model in (app, plain)]
    assert 0 < float((logits[0] - logits[1]).abs().max()) < 2


# Checkpoints.


def test_layers_that_predict_further_tokens_are_left_out(folder: Path, tmp_path: Path) -> None:
    """Published checkpoints have one; a layer after it is an error, as anything unknown."""
    target = tmp_path / "model"
    changed(folder, target, num_nextn_predict_layers=1)
    expected = load_app(folder, **SHORT)(PROMPT).logits
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.2.eh_proj.weight"] = torch.zeros(3)
    (target / "model.safetensors").unlink()
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(load_app(target, **SHORT)(PROMPT).logits, expected)
    tensors["model.layers.3.eh_proj.weight"] = torch.zeros(3)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightError, match=r"not used by the model: layers\.3\.eh_proj"):
        make_app(target, **SHORT).compile(tmp_path / "artifact")


def test_the_bias_that_chooses_experts_keeps_its_float32(folder: Path) -> None:
    model: Any = make_app(folder, torch_dtype="bfloat16", **SHORT).build(Phase.DECODE)
    router = model.layers[1].mlp.router
    assert router.e_score_correction_bias.dtype == torch.float32
    assert router.weight.dtype == torch.bfloat16


def test_a_folder_of_quantized_weights(folder: Path, tmp_path: Path) -> None:
    """All but the experts, and what makes keys and values of latents."""
    quantize_folder(folder, tmp_path / "int8", False, modules_to_not_convert=["experts"])
    options = {"backend": "eager", "torch_dtype": "float32", **SHORT}
    app = AutoModelForCausalLM.from_pretrained(tmp_path / "int8", **options)
    model: Any = app.build(Phase.DECODE)
    attention = model.layers[0].self_attn
    assert attention.q_a_proj.weight.dtype == attention.o_proj.weight.dtype == torch.int8
    assert attention.kv_b_proj.weight.dtype == torch.float32
    plain = load_app(folder, **SHORT)(PROMPT).logits
    assert 0 < float((app(PROMPT).logits - plain).abs().max()) < 2


# Configs.


@pytest.mark.parametrize(
    ("num_dense", "kinds"), [(0, [MoE, MoE]), (1, [GatedMLP, MoE]), (2, [GatedMLP, GatedMLP])]
)
def test_which_layers_are_dense(
    num_dense: int, kinds: list[type], folder: Path, tmp_path: Path
) -> None:
    target = changed(folder, tmp_path / "model", first_k_dense_replace=num_dense)
    model: Any = make_app(target, **SHORT).build(Phase.DECODE)
    assert [type(layer.mlp) for layer in model.layers] == kinds


def test_neighbours_are_turned_unless_the_config_says_otherwise(
    folder: Path, tmp_path: Path
) -> None:
    for value, is_interleaved in ((True, True), (False, False)):
        target = changed(folder, tmp_path / str(value), rope_interleave=value)
        model: Any = make_app(target, **SHORT).build(Phase.DECODE)
        rotary = model.layers[0].self_attn.rotary_emb
        assert isinstance(rotary, InterleavedRotaryEmbedding) is is_interleaved


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_group": 3}, "2 of 3 groups of 8 experts: the groups must be equal"),
        ({"topk_group": 5}, "5 of 4 groups of 8 experts"),
        ({"num_experts_per_tok": 5}, "num_experts_per_tok=5 is more than the experts of 2 of 4"),
        ({"kv_lora_rank": 0}, "'kv_lora_rank'=0 must be an integer from 1"),
        ({"q_lora_rank": -4}, "'q_lora_rank'=-4 must be an integer from 1"),
        ({"v_head_dim": None}, "v_head_dim is null"),
        ({"n_group": None}, "n_group is null"),
        ({"qk_rope_head_dim": 7}, "qk_rope_head_dim=7 is turned in pairs"),
        ({"first_k_dense_replace": -1}, "'first_k_dense_replace'=-1 must be an integer from 0"),
        ({"routed_scaling_factor": "much"}, "'routed_scaling_factor'='much' must be a number"),
    ],
)
def test_configs_that_make_no_sense(
    changes: dict[str, Any], message: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_app(changed(folder, tmp_path / "model", **changes), **SHORT).build(Phase.DECODE)


# Tools.


@pytest.mark.parametrize("tp_degree", [1, 2])
def test_check_compares_every_module(tp_degree: int, folder: Path) -> None:
    app = load_app(folder, tp_degree=tp_degree, batch_size=2, **SHORT)
    report = find_divergence(app, random_prompts(2, 9, VOCAB_SIZE), 3)
    assert report.divergence is None
    whole = {"self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa", "self_attn.kv_a_layernorm"}
    assert {"layers.1.mlp", *(f"layers.0.{name}" for name in whole)} <= set(report.modules)
