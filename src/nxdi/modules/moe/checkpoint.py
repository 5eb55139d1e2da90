"""The names and layouts that checkpoints give experts, made those of `Experts`."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from nxdi.config.limits import shown
from nxdi.errors import WeightError

_SINGLE = re.compile(r"(.+\.experts)\.(\d+)\.(\w+)\.weight")
_FUSED = (".experts.gate_up_proj", ".experts.down_proj")


def fuse_experts(
    state_dict: dict[str, Tensor],
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
) -> dict[str, Tensor]:
    """A checkpoint of Hugging Face with the weights of all experts in one.

    Both of transformers' layouts are read: one linear per expert, `experts.3.up_proj.weight`
    [I, H], and as of 5.0 `experts.gate_up_proj` [E, 2 * I, H], `experts.down_proj` [E, H, I].
    names: of gate, up and down where there is one linear per expert.
    Returns: the same with `experts.gate_up_proj` [E, H, 2 * I] and `experts.down_proj` [E, I, H].
    Raises: WeightError for an expert that is missing, or has another shape than its neighbours.
    """
    converted: dict[str, Tensor] = {}
    single: dict[str, dict[str, dict[int, Tensor]]] = {}
    for name, tensor in state_dict.items():
        match = _SINGLE.fullmatch(name)
        if match and match[3] in names:
            kinds = single.setdefault(match[1], {kind: {} for kind in names})
            kinds[match[3]][int(match[2])] = tensor
        elif name.endswith(_FUSED) and tensor.dim() == 3:
            converted[name] = tensor.transpose(1, 2)
        else:
            converted[name] = tensor
    for path, kinds in single.items():
        gates, ups, downs = (_in_order(f"{path}.*.{kind}.weight", kinds[kind]) for kind in names)
        if len(gates) != len(ups) or gates[0].shape != ups[0].shape:
            raise WeightError(
                f"{path}: there are {len(gates)} {names[0]} of shape {tuple(gates[0].shape)} and "
                f"{len(ups)} {names[1]} of shape {tuple(ups[0].shape)}, which must be alike; "
                "restore the checkpoint"
            )
        both = [torch.cat(pair).t() for pair in zip(gates, ups, strict=True)]
        converted[f"{path}.gate_up_proj"] = torch.stack(both)
        converted[f"{path}.down_proj"] = torch.stack([down.t() for down in downs])
    return converted


def _in_order(name: str, tensors: dict[int, Tensor]) -> list[Tensor]:
    """The matrices of experts 0, 1, ..., which are all of one shape."""
    count = max(tensors, default=0) + 1
    shapes = {tuple(tensor.shape) for tensor in tensors.values()}
    if len(tensors) != count or len(shapes) != 1 or len(*shapes) != 2:
        raise WeightError(
            f"{name}: there are {len(tensors)} tensors for experts 0 to {count - 1}, of shapes "
            f"{shown(sorted(shapes))}; each expert must have a matrix of the same shape: restore "
            "the checkpoint"
        )
    return [tensors[number] for number in range(count)]


# NxDI's names below a mixture -> ours. The layouts are the same.
_NXDI = {
    "router.linear_router.weight": "router.weight",
    "router.linear_router.bias": "router.bias",
    "expert_mlps.mlp_op.gate_up_proj.weight": "experts.gate_up_proj",
    "expert_mlps.mlp_op.gate_up_proj.bias": "experts.gate_up_proj_bias",
    "expert_mlps.mlp_op.down_proj.weight": "experts.down_proj",
    "expert_mlps.mlp_op.down_proj.bias": "experts.down_proj_bias",
}
# Second copies that NxDI's kernels want.
_COPIES = ("router.weight_T", "moe_fused_tkg.")


def rename_from_nxdi(state: dict[str, Tensor], prefix: str) -> None:
    """Give the tensors below `prefix` our names where they have NxDI's."""
    for old, new in _NXDI.items():
        if prefix + old in state:
            state[prefix + new] = state.pop(prefix + old)
    for name in [name for name in state if name.startswith(prefix)]:
        if name.removeprefix(prefix).startswith(_COPIES):
            del state[name]
