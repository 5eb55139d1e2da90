"""From a full checkpoint to the weights of one rank: every name and shape checked, then cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from nxdi.errors import WeightError
from nxdi.parallel_layers.layers import RankShard
from nxdi.parallel_layers.sharding import shard_of
from nxdi.runtime.checkpoint import listed

_BUILDING: ContextVar[bool] = ContextVar("nxdi_building", default=False)


@contextmanager
def without_memory() -> Iterator[None]:
    """Parameters of modules built within the block have shapes only; buffers keep their values.

    A parameter becomes a meta tensor as soon as its module registers it, so that no more than one
    is held in memory and initialisers do nothing.
    """
    to_meta: Any = _on_meta_device  # torch declares no result, and documents one
    hook = register_module_parameter_registration_hook(to_meta)
    token = _BUILDING.set(True)
    try:
        yield
    finally:
        _BUILDING.reset(token)
        hook.remove()


def _on_meta_device(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter | None:
    # The hook is seen by all threads, the variable only by the one that builds.
    if not _BUILDING.get() or parameter is None or parameter.is_meta:
        return None
    on_meta = nn.Parameter(parameter.to("meta"), requires_grad=False)
    vars(on_meta).update(vars(parameter))  # how it is cut for each rank
    return on_meta


def invoke_preshard_hooks(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Let every module with a `preshard_hook` rewrite its tensors in a full checkpoint.

    NxD's protocol: preshard_hook(state_dict, prefix), prefix being the path of the module's weight.
    """
    for name, module in model.named_modules():
        if hasattr(module, "preshard_hook"):
            module.preshard_hook(state, f"{name}.weight" if name else "weight")


def model_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of one rank that a checkpoint fills; those with a value already may be absent."""
    return module.state_dict(keep_vars=True)


def check_weights(wanted: Mapping[str, Tensor], full: Mapping[str, Tensor]) -> None:
    """Compare a checkpoint with a model.

    Raises: WeightError listing all missing, unused and mis-shaped tensors.
    """
    needed = {
        name
        for name, tensor in wanted.items()
        if tensor.is_meta and not isinstance(shard_of(tensor), RankShard)
    }
    problems = []
    if missing := needed - full.keys():
        problems.append(f"missing from the checkpoint: {listed(missing)}")
    if unused := full.keys() - wanted.keys():
        problems.append(f"not used by the model: {listed(unused)}")
    wrong = []
    for name in wanted.keys() & full.keys():
        shape = _full_shape(wanted[name])
        if tuple(full[name].shape) != shape:
            wrong.append(f"{name} has shape {tuple(full[name].shape)}, the model needs {shape}")
    if wrong:
        problems.append(f"wrong shapes: {listed(wrong)}")
    if problems:
        raise WeightError(
            "the checkpoint does not fit the model:\n  "
            + "\n  ".join(problems)
            + "\ncheck that config.json belongs to this checkpoint, or rename the tensors in "
            "convert_hf_to_neuron_state_dict"
        )


def cut_for_rank(
    wanted: Mapping[str, Tensor], full: Mapping[str, Tensor], rank: int
) -> dict[str, Tensor]:
    """The weights of one rank in the model's dtypes; views of the checkpoint where they can be."""
    cut = {}
    for name, tensor in wanted.items():
        shard = shard_of(tensor)
        # The rank itself is in no checkpoint, nor are buffers that the model has computed.
        source = full.get(name, tensor)
        piece = source if shard is None else shard.cut(source, rank, tuple(tensor.shape))
        # Compiled graphs assume dense weights. Rows of a checkpoint are dense; columns are copied.
        cut[name] = piece.to(tensor.dtype).contiguous()
    return cut


def check_rank_weights(
    wanted: Mapping[str, Tensor], weights: Mapping[str, Tensor], rank: int
) -> None:
    """Compare one rank's stored weights with the model.

    Raises: WeightError listing every difference.
    """
    wrong = [
        f"{name}: {_described(weights.get(name))}, the model needs {_described(wanted.get(name))}"
        for name in wanted.keys() | weights.keys()
        if _described(weights.get(name)) != _described(wanted.get(name))
    ]
    if wrong:
        raise WeightError(
            f"the sharded weights of rank {rank} do not fit the model: {listed(wrong)}; compile "
            "again"
        )


def _full_shape(tensor: Tensor) -> tuple[int, ...]:
    shard = shard_of(tensor)
    return tuple(tensor.shape) if shard is None else shard.full_shape(tuple(tensor.shape))


def _described(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else f"{tuple(tensor.shape)} {tensor.dtype}"
