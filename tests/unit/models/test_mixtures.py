"""What the families with experts read and refuse, and how their experts are spread."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from golden.parity import check_logits
from nxdi.config import InferenceConfig, NeuronConfig
from nxdi.errors import ConfigError, UnsupportedError, WeightError
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.modules.mlp import GatedMLP
from nxdi.modules.moe import MoE
from nxdi.tools.model_info import describe_model
from nxdi.types import Phase
from tiny_models import VOCAB_SIZE, load_app, make_app, save_tiny, tiny_hf_model

SHORT: dict[str, Any] = {"seq_len": 32, "max_context_length": 16}
PROMPT = torch.arange(1, 12)[None] * 7 % VOCAB_SIZE


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def steps(app: NeuronBaseForCausalLM) -> list[Tensor]:
    """The logits of a prompt and of four greedy steps."""
    logits = [app(PROMPT).logits]
    for position in range(PROMPT.shape[1], PROMPT.shape[1] + 4):
        assert logits[-1] is not None
        token = logits[-1][:, -1].argmax(dim=-1, keepdim=True)
        logits.append(app(token, position_ids=torch.tensor([[position]])).logits)
    return [found[:, -1] for found in logits if found is not None]


@pytest.mark.parametrize(
    "options",
    [
        {"moe_ep_degree": 8},
        {"moe_ep_degree": 4, "moe_tp_degree": 2},
        {"hybrid_sharding_config": {"moe_cte_tp_degree": 8, "moe_tkg_ep_degree": 8}},
    ],
)
def test_64_experts_on_8_ranks(options: dict[str, Any], tmp_path: Path) -> None:
    sizes = {"num_experts": 64, "num_experts_per_tok": 6, "moe_intermediate_size": 16}
    folder = save_tiny(tiny_hf_model("qwen3_moe", **sizes), tmp_path / "model")
    expected = steps(load_app(folder, **SHORT))
    for got, one in zip(
        steps(load_app(folder, tp_degree=8, **options, **SHORT)), expected, strict=True
    ):
        check_logits(got, one)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "olmoe", "deepseek"])
def test_both_layouts_of_a_checkpoint(family: str, tmp_path: Path) -> None:
    """transformers writes one linear per expert; its own models have all in one."""
    model = tiny_hf_model(family)
    folder = save_tiny(model, tmp_path / "model")
    file = folder / "model.safetensors"
    assert any(".experts.3." in name for name in load_file(file))
    expected = steps(load_app(folder, **SHORT))
    fused = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    assert any(name.endswith(".experts.gate_up_proj") for name in fused)
    save_file(fused, file, metadata={"format": "pt"})
    for got, one in zip(steps(load_app(folder, **SHORT)), expected, strict=True):
        check_logits(got, one)


def test_an_expert_that_is_missing(tmp_path: Path) -> None:
    folder = save_tiny(tiny_hf_model("mixtral"), tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.block_sparse_moe.experts.2.w3.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightError, match=r"layers\.1\.mlp\.experts\.\*\.w3\.weight: there are 3"):
        make_app(folder, **SHORT).compile(tmp_path / "artifact")


def test_which_layers_of_qwen3_moe_have_experts(tmp_path: Path) -> None:
    sizes = {"num_hidden_layers": 6, "mlp_only_layers": [3], "decoder_sparse_step": 2}
    folder = save_tiny(tiny_hf_model("qwen3_moe", **sizes), tmp_path / "model")
    model: Any = make_app(folder, **SHORT).build(Phase.PREFILL)
    kinds = [type(layer.mlp) for layer in model.layers]
    assert kinds == [GatedMLP, MoE, GatedMLP, GatedMLP, GatedMLP, MoE]


def test_dbrx_turns_by_the_theta_of_its_attention(tmp_path: Path) -> None:
    """Published checkpoints have it there, and transformers 5 writes its default beside it."""
    attention = {"kv_n_heads": 2, "clip_qkv": 1.0, "rope_theta": 500.0}
    folder = save_tiny(tiny_hf_model("dbrx", attn_config=attention), tmp_path / "model")
    assert json.loads((folder / "config.json").read_text())["rope_parameters"]["rope_theta"] == 1e4
    config: InferenceConfig = make_app(folder, **SHORT).config
    assert config.rope_theta == 500.0


def test_dbrx_with_another_norm_of_the_weights_is_refused(tmp_path: Path) -> None:
    ffn = {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_normalize_expert_weights": 2.0}
    folder = save_tiny(tiny_hf_model("dbrx", ffn_config=ffn), tmp_path / "model")
    with pytest.raises(UnsupportedError, match=r"moe_normalize_expert_weights=2\.0 is not"):
        make_app(folder, **SHORT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mlp.v1": None}, r"mlp\.experts\.v1 is not there"),
        ({"mlp.w2": torch.zeros(7, 64)}, r"mlp\.experts\.w2 is of shape \(7, 64\)"),
    ],
)
def test_damaged_experts_of_dbrx(
    change: dict[str, Tensor | None], message: str, tmp_path: Path
) -> None:
    folder = save_tiny(tiny_hf_model("dbrx"), tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in change.items():
        path = f"transformer.blocks.0.ffn.experts.{name}"
        del tensors[path]
        if tensor is not None:
            tensors[path] = tensor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightError, match=message):
        make_app(folder, **SHORT).compile(tmp_path / "artifact")


def test_more_experts_per_token_than_there_are(tmp_path: Path) -> None:
    folder = save_tiny(tiny_hf_model("mixtral"), tmp_path / "model")
    edit_config(folder, num_experts_per_tok=5)
    with pytest.raises(ConfigError, match="num_experts_per_tok=5 is not between 1 and the 4"):
        make_app(folder, **SHORT).build(Phase.PREFILL)


def test_experts_that_do_not_divide(tmp_path: Path) -> None:
    folder = save_tiny(tiny_hf_model("mixtral"), tmp_path / "model")
    app = make_app(folder, tp_degree=8, moe_ep_degree=8, **SHORT)
    with pytest.raises(ConfigError, match=r"4 experts are not divisible by .* degree of 8"):
        app.build(Phase.PREFILL)


def test_options_without_experts_are_refused(tmp_path: Path) -> None:
    folder = save_tiny(tiny_hf_model("mixtral"), tmp_path / "model")
    made = make_app(folder, **SHORT)
    app = type(made)(folder, neuron_config=NeuronConfig(backend="eager", torch_dtype="float32"))
    with pytest.raises(ConfigError, match="needs a MoENeuronConfig"):
        app.build(Phase.PREFILL)


def test_an_option_wins_over_the_model(tmp_path: Path) -> None:
    folder = save_tiny(tiny_hf_model("mixtral"), tmp_path / "model")
    plain = steps(load_app(folder, **SHORT))
    changed = steps(load_app(folder, disable_normalize_top_k_affinities=True, **SHORT))
    assert all(float((a - b).abs().max()) > 0.01 for a, b in zip(plain, changed, strict=True))


def test_capacity_drops_tokens(tmp_path: Path) -> None:
    """The same graph with little room for each expert gives something else, in prefill."""
    folder = save_tiny(tiny_hf_model("mixtral"), tmp_path / "model")
    plain = steps(load_app(folder, **SHORT))[0]
    tight = steps(load_app(folder, capacity_factor=0.1, **SHORT))[0]
    assert float((plain - tight).abs().max()) > 0.01


def test_hybrid_sharding_is_seen_in_the_memory(tmp_path: Path) -> None:
    folder = save_tiny(tiny_hf_model("mixtral"), tmp_path / "model")
    hybrid = {"moe_cte_tp_degree": 2, "moe_tkg_ep_degree": 2}
    once = describe_model(make_app(folder, tp_degree=2, **SHORT))
    twice = describe_model(make_app(folder, tp_degree=2, hybrid_sharding_config=hybrid, **SHORT))
    assert twice.num_parameters == once.num_parameters
    experts = 2 * 4 * 3 * 64 * 112 * 4  # layers, experts, matrices, sizes, bytes
    assert twice.weight_bytes[0] - once.weight_bytes[0] == pytest.approx(experts / 2, rel=0.01)


def test_padding_of_experts_is_noted(tmp_path: Path) -> None:
    folder = save_tiny(tiny_hf_model("mixtral", intermediate_size=110), tmp_path / "model")
    notes = describe_model(make_app(folder, tp_degree=4, **SHORT)).notes
    assert any(
        "experts.down_proj" in note and "110 is padded with zeros to 112" in note for note in notes
    )
