"""The projections around attention, over this rank's heads, and the names checkpoints give them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nxdi.config import NeuronConfig
from nxdi.errors import WeightError
from nxdi.kernels.ops import OutputCall, QKVCall
from nxdi.kernels.registry import Kernel, choose, register
from nxdi.modules.sequence import SequenceGather
from nxdi.parallel_layers.layers import ColumnParallelLinear, RowParallelLinear, unread_reason
from nxdi.parallel_layers.parallel_state import get_tensor_model_parallel_size
from nxdi.parallel_layers.sharding import HeadLayout, HeadShard


class QKVProjection(nn.Module):
    """Queries, keys and values of this rank's heads, in one call as NxDI has it.

    Shapes: hidden_states [B, S, hidden] (S / tp with sequence parallelism) -> q [B, S, N_q * D],
    k and v [B, S, N_kv * D], and `residual` as it came.
    clip: bound on the magnitude of every projected value.
    """

    def __init__(
        self,
        neuron_config: NeuronConfig,
        *,
        hidden_size: int,
        head_dim: int,
        layout: HeadLayout,
        num_heads: int,
        num_key_value_heads: int,
        bias: bool,
        clip: float | None = None,
    ) -> None:
        super().__init__()
        self.gather = SequenceGather(neuron_config.sequence_parallel_enabled)
        # A layer that leaves its norm to NxDI's fused kernel hands it over instead of applying it.
        self.applies_norm = bool(
            neuron_config.qkv_kernel_enabled and not neuron_config.sequence_parallel_enabled
        )
        self.clip, self.head_dim = clip, head_dim
        ranks = get_tensor_model_parallel_size()

        def column(heads: tuple[tuple[int, ...], ...], total: int) -> ColumnParallelLinear:
            return ColumnParallelLinear(
                hidden_size,
                ranks * len(heads[0]) * head_dim,
                bias,
                gather_output=False,
                dtype=neuron_config.torch_dtype,
                shard=HeadShard(0, heads, head_dim, total),
            )

        self.q_proj = column(layout.q, num_heads)
        self.k_proj = column(layout.kv, num_key_value_heads)
        self.v_proj = column(layout.kv, num_key_value_heads)

    def forward(
        self,
        hidden_states: Tensor,
        rmsnorm: nn.Module | None = None,
        adapter_ids: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        if rmsnorm is not None and self.applies_norm:
            hidden_states = rmsnorm(hidden_states)
        x = self.gather(hidden_states)
        call = self._describe(x)
        q, k, v = choose(QKV, call).run(self, x, call)
        if self.clip is not None:
            q, k, v = (t.clamp(-self.clip, self.clip) for t in (q, k, v))
        return q, k, v, residual

    def multiply(self, x: Tensor, call: QKVCall) -> tuple[Tensor, Tensor, Tensor]:
        """The three products, one by one."""
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)

    def _describe(self, x: Tensor) -> QKVCall:
        hidden_size = x.shape[-1]
        return QKVCall(
            num_rows=x.numel() // hidden_size,
            hidden_size=hidden_size,
            q_size=self.q_proj.weight.numel() // hidden_size,
            kv_size=self.k_proj.weight.numel() // hidden_size,
            head_dim=self.head_dim,
            dtype=x.dtype,
            peculiarity=unread_reason(x.dtype, self.q_proj, self.k_proj, self.v_proj),
        )


class OutputProjection(RowParallelLinear):
    """[B, S, N_q * D] of this rank's heads -> [B, S, hidden], summed over ranks."""

    def forward(self, x: Tensor, adapter_ids: Tensor | None = None) -> Tensor:
        input_size = x.shape[-1]
        call = OutputCall(
            num_rows=x.numel() // input_size,
            input_size=input_size,
            output_size=self.output_size,
            dtype=x.dtype,
            peculiarity=unread_reason(x.dtype, self),
        )
        out: Tensor = choose(ATTENTION_OUTPUT, call).run(self, x, call)
        return out

    def multiply(self, x: Tensor, call: OutputCall) -> Tensor:
        """As any row-parallel layer does."""
        return super().forward(x)


QKV, ATTENTION_OUTPUT = "qkv", "attention_output"
register(QKV, "generic", Kernel.plain(QKVProjection.multiply))
register(ATTENTION_OUTPUT, "generic", Kernel.plain(OutputProjection.multiply))


def rename_projections(
    state: dict[str, Tensor], prefix: str, sizes: tuple[int, int, int], o_proj_name: str = "o_proj"
) -> None:
    """Give the tensors below `prefix` this module's names, from any of the spellings in use.

    Hugging Face: `q_proj`, `k_proj`, `v_proj`, `o_proj`. NxDI: `qkv_proj.q_proj`, `o_proj.o_proj`,
    and `Wqkv` or `qkv_proj.Wqkv` with the rows of q, k and v one after the other (`sizes` of them).
    Raises: WeightError for a fused tensor of another size.
    """
    for kind in ("weight", "bias"):
        for fused in (f"{prefix}Wqkv.{kind}", f"{prefix}qkv_proj.Wqkv.{kind}"):
            if fused in state:
                _split_fused(state, fused, prefix, kind, sizes)
        for name in ("q_proj", "k_proj", "v_proj"):
            _rename(state, f"{prefix}{name}.{kind}", f"{prefix}qkv_proj.{name}.{kind}")
        _rename(state, f"{prefix}{o_proj_name}.{kind}", f"{prefix}o_proj.{kind}")
        _rename(state, f"{prefix}o_proj.o_proj.{kind}", f"{prefix}o_proj.{kind}")


def _rename(state: dict[str, Tensor], old: str, new: str) -> None:
    if old in state and old != new:
        state[new] = state.pop(old)


def _split_fused(
    state: dict[str, Tensor], fused: str, prefix: str, kind: str, sizes: tuple[int, int, int]
) -> None:
    rows = state[fused].shape[0]
    if rows != sum(sizes):
        raise WeightError(
            f"{fused} has {rows} rows, but q, k and v need {' + '.join(map(str, sizes))}; store "
            "them one after the other, not interleaved"
        )
    parts = torch.split(state.pop(fused), list(sizes))
    for name, part in zip(("q_proj", "k_proj", "v_proj"), parts, strict=True):
        state[f"{prefix}qkv_proj.{name}.{kind}"] = part
