from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nxdi.errors import WeightError
from nxdi.parallel_layers.layers import ColumnParallelLinear, RowParallelLinear, SPMDRank
from nxdi.parallel_layers.parallel_state import tensor_parallel
from nxdi.runtime.checkpoint import write_safetensors
from nxdi.runtime.weights import check_rank_weights, check_weights, cut_for_rank, model_tensors
from tiny_models import load_app, make_app, save_tiny, tiny_hf_model


class Model(nn.Module):
    """One of each kind of tensor."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.up = ColumnParallelLinear(4, 6, bias=False, gather_output=False, dtype=dtype)
        self.down = RowParallelLinear(6, 4, bias=True, input_is_parallel=True, dtype=dtype)
        self.rank_util = SPMDRank(2)
        self.register_buffer("table", torch.zeros(3))
        self.register_buffer("derived", torch.zeros(3), persistent=False)


def wanted(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    with tensor_parallel(2):
        return model_tensors(Model(dtype))


def full() -> dict[str, Tensor]:
    return {
        "up.weight": torch.arange(24.0).view(6, 4),
        "down.weight": torch.arange(24.0).view(4, 6),
        "down.bias": torch.arange(4.0),
        "table": torch.arange(3.0),
    }


def test_a_checkpoint_provides_parameters_and_persistent_buffers() -> None:
    assert sorted(wanted()) == [
        "down.bias",
        "down.weight",
        "rank_util.rank",
        "table",
        "up.weight",
    ]
    check_weights(wanted(), full())


def test_everything_that_does_not_fit_is_in_one_error() -> None:
    given = full()
    del given["table"], given["down.bias"]
    given["up.weight"] = torch.zeros(6, 5)
    given["down.weight"] = torch.zeros(4, 3)
    given["gate.weight"] = torch.zeros(1)
    with pytest.raises(WeightError) as caught:
        check_weights(wanted(), given)
    message = str(caught.value)
    assert "missing from the checkpoint: down.bias, table" in message
    assert "not used by the model: gate.weight" in message
    assert "up.weight has shape (6, 5), the model needs (6, 4)" in message
    assert "down.weight has shape (4, 3), the model needs (4, 6)" in message
    assert "rename the tensors in convert_hf_to_neuron_state_dict" in message


def test_long_lists_are_cut() -> None:
    given = {**full(), **{f"extra.{i:02}": torch.zeros(1) for i in range(30)}}
    with pytest.raises(WeightError, match=r"extra.19 and 10 more"):
        check_weights(wanted(), given)


def test_each_rank_gets_its_piece() -> None:
    pieces = [cut_for_rank(wanted(), full(), rank) for rank in range(2)]
    assert torch.equal(torch.cat([p["up.weight"] for p in pieces], 0), full()["up.weight"])
    assert torch.equal(torch.cat([p["down.weight"] for p in pieces], 1), full()["down.weight"])
    for rank, piece in enumerate(pieces):
        assert torch.equal(piece["down.bias"], full()["down.bias"])
        assert piece["rank_util.rank"].tolist() == [rank]
        assert all(tensor.is_contiguous() for tensor in piece.values())


def test_rows_are_views_of_the_checkpoint() -> None:
    given = full()
    piece = cut_for_rank(wanted(), given, 1)
    assert piece["up.weight"].data_ptr() == given["up.weight"][3].data_ptr()
    assert piece["table"].data_ptr() == given["table"].data_ptr()


def test_pieces_have_the_dtype_of_the_model() -> None:
    piece = cut_for_rank(wanted(torch.bfloat16), full(), 0)
    assert piece["up.weight"].dtype == torch.bfloat16
    assert piece["table"].dtype == torch.float32


def test_stored_weights_of_a_rank() -> None:
    weights = cut_for_rank(wanted(), full(), 1)
    check_rank_weights(wanted(), weights, 1)
    del weights["table"]
    weights["down.bias"] = torch.zeros(5)
    weights["up.weight"] = weights["up.weight"].half()
    weights["extra"] = torch.zeros(1)
    with pytest.raises(WeightError) as caught:
        check_rank_weights(wanted(), weights, 1)
    message = str(caught.value)
    assert message.startswith("the sharded weights of rank 1 do not fit the model: ")
    for part in (
        "table: nothing, the model needs (3,) torch.float32",
        "down.bias: (5,) torch.float32, the model needs (4,) torch.float32",
        "up.weight: (3, 4) torch.float16, the model needs (3, 4) torch.float32",
        "extra: (1,) torch.float32, the model needs nothing",
        "compile again",
    ):
        assert part in message


def tied_folder(folder: Path, has_lm_head: bool) -> Path:
    """A model with tied embeddings whose file may hold the tensor under both names."""
    model = tiny_hf_model("llama", tie_word_embeddings=True)
    save_tiny(model, folder)
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    assert torch.equal(state["lm_head.weight"], state["model.embed_tokens.weight"])
    if not has_lm_head:
        del state["lm_head.weight"]
    write_safetensors(folder / "model.safetensors", state)
    return folder


@pytest.mark.parametrize("has_lm_head", [True, False])
def test_tied_embeddings(tmp_path: Path, has_lm_head: bool) -> None:
    app = load_app(tied_folder(tmp_path, has_lm_head), seq_len=8)
    weights = app.rank_weights((0,))[0]
    assert torch.equal(weights["lm_head.weight"], weights["embed_tokens.weight"])
    assert weights["lm_head.weight"].data_ptr() == weights["embed_tokens.weight"].data_ptr()


def test_untied_embeddings_without_lm_head(tmp_path: Path) -> None:
    folder = save_tiny(tiny_hf_model("llama"), tmp_path)
    app = make_app(folder, seq_len=8)
    state = {f"model.{name}": tensor for name, tensor in app.get_state_dict().items()}
    del state["model.lm_head.weight"]
    write_safetensors(folder / "model.safetensors", state)
    with pytest.raises(WeightError, match=r"missing from the checkpoint: lm_head.weight"):
        app.compile(tmp_path / "artifact")
    assert not (tmp_path / "artifact").exists()


def test_what_older_checkpoints_carry_along_is_ignored(tmp_path: Path) -> None:
    folder = save_tiny(tiny_hf_model("llama"), tmp_path)
    app = make_app(folder, seq_len=8)
    state = {f"model.{name}": tensor for name, tensor in app.get_state_dict().items()}
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
    state["model.embed_tokens.rank_util.rank"] = torch.zeros(1)
    write_safetensors(folder / "model.safetensors", state)
    app.compile(tmp_path / "artifact")
