"""What keys and values are stored as, and what attention reads: the same, or float8 numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nxdi.config import KVQuantizationConfig, NeuronConfig
from nxdi.config.quantization import largest_stored
from nxdi.modules.kvcache.spec import Attended, Stored
from nxdi.parallel_layers.sharding import HeadLayout, HeadShard, set_shard


class PlainKV(nn.Module):
    """Keys and values as they are."""

    def encode(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return k, v

    def decode(self, attended: Attended) -> Attended:
        return attended


class Float8KV(nn.Module):
    """Keys and values divided by static scales, clamped and rounded to float8.

    A prefill attends to what it stores, so that a prompt gives the same whole and in pieces.
    """

    def __init__(
        self,
        config: KVQuantizationConfig,
        neuron: NeuronConfig,
        layout: HeadLayout,
        head_dims: tuple[int, int],
    ) -> None:
        super().__init__()
        self.dtype, self.compute_dtype = config.quant_dtype, neuron.compute_dtype
        self.limit = largest_stored(self.dtype, neuron.is_for_neuron)
        methods = (config.k_quant_method, config.v_quant_method)
        self.k_scales, self.v_scales = (
            None if config.direct_cast else _scales(method, layout, dim)
            for method, dim in zip(methods, head_dims, strict=True)
        )

    def encode(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Each [B, N, S, D] -> the same in float8."""
        return self._store(k, self.k_scales), self._store(v, self.v_scales)

    def decode(self, attended: Attended) -> Attended:
        keys = self._read(attended.keys, self.k_scales)
        values = self._read(attended.values, self.v_scales)
        return Attended(keys, values, attended.positions, self._stored(attended))

    def _stored(self, attended: Attended) -> Stored | None:
        """What is attended to as it is stored, if its scales are those of heads."""
        found = attended.stored or Stored(attended.keys, attended.values)
        if self.k_scales is None or self.v_scales is None:
            return found
        per_head = [x.flatten() for x in (self.k_scales, self.v_scales) if x.shape[-1] == 1]
        if len(per_head) < 2:
            return None
        num_heads = attended.keys.shape[1]
        return found._replace(scales=torch.stack([x.expand(num_heads) for x in per_head]))

    def _store(self, x: Tensor, scales: Tensor | None) -> Tensor:
        if scales is not None:
            # Heads that only pad have scales of zero, and nothing to store.
            x = x / torch.where(scales == 0, torch.ones_like(scales), scales)
        return x.clamp(-self.limit, self.limit).to(self.dtype)

    def _read(self, x: Tensor, scales: Tensor | None) -> Tensor:
        wide = x.to(self.compute_dtype)
        return wide if scales is None else wide * scales.to(self.compute_dtype)


def make_codec(
    neuron: NeuronConfig, layout: HeadLayout, head_dims: tuple[int, int]
) -> PlainKV | Float8KV:
    """What the config asks for; head_dims: of a key, and of a value."""
    if neuron.kv_quant_config is None:
        return PlainKV()
    return Float8KV(neuron.kv_quant_config, neuron, layout, head_dims)


def rename_scales(state: dict[str, Tensor], path: str) -> None:
    """Give the scales of the attention at `path` their place in its codec."""
    for name in ("k_scales", "v_scales"):
        if path + name in state:
            state[f"{path}kv_codec.{name}"] = state.pop(path + name)


def _scales(method: str, layout: HeadLayout, head_dim: int) -> nn.Parameter:
    shape = {
        "per_tensor_symmetric": (1,),
        "per_head_symmetric": (layout.num_kv_per_rank, 1, 1),
        "per_channel_symmetric": (1, 1, head_dim),
    }[method]
    scales = nn.Parameter(torch.empty(shape, dtype=torch.float32), requires_grad=False)
    if method == "per_head_symmetric":
        set_shard(scales, HeadShard(0, layout.kv, 1, 1 + max(map(max, layout.kv))))
    return scales
