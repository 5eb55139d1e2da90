from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nxdi.errors import WeightError
from nxdi.parallel_layers.layers import ColumnParallelLinear, RowParallelLinear, SPMDRank
from nxdi.parallel_layers.parallel_state import tensor_parallel
from nxdi.parallel_layers.sharding import DimShard, shard_of
from nxdi.parallel_layers.utils import set_tensor_model_parallel_attributes
from nxdi.runtime.checkpoint import write_safetensors
from nxdi.runtime.weights import (
    check_rank_weights,
    check_weights,
    cut_for_rank,
    invoke_preshard_hooks,
    model_tensors,
    without_memory,
)
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
    with without_memory(), tensor_parallel(2):
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
    assert "missing from the checkpoint: down.bias" in message
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


def test_a_model_without_memory_has_shapes_and_the_values_of_buffers() -> None:
    class Tables(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)
            self.norm = nn.LayerNorm(3)
            self.register_buffer("kept", torch.arange(3.0))
            self.register_buffer("derived", torch.arange(4.0), persistent=False)
            self.plain = torch.arange(5.0)
            self.register_parameter("absent", None)

    with without_memory():
        module = Tables()
    parameters = dict(module.named_parameters())
    assert {name: tuple(p.shape) for name, p in parameters.items()} == {
        "linear.weight": (2, 3),
        "linear.bias": (2,),
        "norm.weight": (3,),
        "norm.bias": (3,),
    }
    assert all(p.is_meta and not p.requires_grad for p in parameters.values())
    assert module.kept.tolist() == [0, 1, 2]
    assert module.derived.tolist() == [0, 1, 2, 3]
    assert module.plain.tolist() == [0, 1, 2, 3, 4]
    assert module.absent is None


def test_how_a_parameter_is_cut_survives() -> None:
    class Own(nn.Module):
        """Marks its parameter before it is registered, and another one after."""

        def __init__(self) -> None:
            super().__init__()
            before = nn.Parameter(torch.ones(3))
            set_tensor_model_parallel_attributes(before, True, 0, num_partitions=2)
            self.before = before
            self.after = nn.Parameter(torch.ones(2, 5))
            set_tensor_model_parallel_attributes(self.after, True, 1, num_partitions=2)

    with without_memory():
        module = Own()
    assert module.before.is_meta
    assert shard_of(module.before) == DimShard(0, 6)
    assert shard_of(module.after) == DimShard(1, 10)
    full = {"before": torch.arange(6.0), "after": torch.arange(20.0).view(2, 10)}
    piece = cut_for_rank(model_tensors(module), full, rank=1)
    assert piece["before"].tolist() == [3, 4, 5]
    assert piece["after"].tolist() == [[5, 6, 7, 8, 9], [15, 16, 17, 18, 19]]


def test_one_parameter_under_two_names_stays_one() -> None:
    with without_memory():
        first, second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        second.weight = first.weight
    assert first.weight is second.weight


def test_other_threads_and_later_modules_have_memory() -> None:
    with without_memory(), ThreadPoolExecutor(1) as pool:
        elsewhere = pool.submit(nn.Linear, 2, 2).result()
        assert nn.Linear(2, 2).weight.is_meta
    assert not elsewhere.weight.is_meta
    assert not nn.Linear(2, 2).weight.is_meta


def test_memory_is_back_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), without_memory():
        _ = 1 // 0
    assert not nn.Linear(2, 2).weight.is_meta


def test_every_preshard_hook_is_called_once_with_its_path() -> None:
    class Hooked(nn.Module):
        def __init__(self, *children: nn.Module) -> None:
            super().__init__()
            self.inner = nn.ModuleList(children)

        def preshard_hook(self, model_state_dict: dict[str, Tensor], prefix: str) -> None:
            model_state_dict[prefix] = model_state_dict.pop(f"{prefix}_old") + 1

    state = {name: torch.zeros(1) for name in ("weight_old", "inner.1.weight_old", "other")}
    invoke_preshard_hooks(Hooked(nn.Linear(1, 1), Hooked()), state)
    assert {name: tensor.item() for name, tensor in state.items()} == {
        "weight": 1,
        "inner.1.weight": 1,
        "other": 0,
    }
