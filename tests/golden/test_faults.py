"""The parity checks can fail: each of these faults, one per law, makes them do so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from golden.parity import Reference, check_all_buckets, load
from nxdi.graph import padding
from nxdi.graph.plan import GraphPlan, GraphSpec
from nxdi.kernels.masks import Causal, Chunked, SlidingWindow
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.models.llama4.modeling_llama4 import NeuronLlama4TunedAttention
from nxdi.models.model_base import NeuronBaseModel
from nxdi.modules import rope
from nxdi.modules.kvcache import ChunkedCache, WindowCache
from nxdi.modules.moe import glu
from nxdi.modules.moe.experts import Experts
from nxdi.modules.moe.router import Router, Routing
from nxdi.modules.yarn import Yarn
from nxdi.parallel_layers import collectives, layers
from nxdi.runtime.backends.eager import EagerRank
from nxdi.types import Phase

Patch = pytest.MonkeyPatch


def late_positions(patch: Patch) -> None:
    """Decoded tokens stand one position too far."""
    right = NeuronBaseForCausalLM.forward

    def wrong(self: Any, input_ids: Tensor, *args: Any, **keywords: Any) -> Any:
        if keywords.get("position_ids") is not None:
            keywords["position_ids"] = keywords["position_ids"] + 1
        return right(self, input_ids, *args, **keywords)

    patch.setattr(NeuronBaseForCausalLM, "forward", wrong)


def wrong_rope_base(patch: Patch) -> None:
    right = rope.plain_frequencies
    patch.setattr(rope, "plain_frequencies", lambda dim, base: right(dim, base * 1.01))


def no_rope_scaling(patch: Patch) -> None:
    patch.setitem(rope._SCALINGS, "llama3", lambda inv_freq, scaling: inv_freq)


def no_window(patch: Patch) -> None:
    patch.setattr(SlidingWindow, "allowed", lambda self, q, k: Causal().allowed(q, k))


def window_off_by_one(patch: Patch) -> None:
    right = SlidingWindow.allowed
    patch.setattr(
        SlidingWindow, "allowed", lambda self, q, k: right(SlidingWindow(self.window - 1), q, k)
    )


def window_that_does_not_roll(patch: Patch) -> None:
    """The slots of a full window keep the first tokens' positions."""

    def wrong(self: WindowCache, newest: Tensor, num_seen: int) -> Tensor:
        slots = torch.arange(min(self.num_slots, num_seen), dtype=torch.int32)[None]
        return torch.where(slots > newest, -1, slots)

    patch.setattr(WindowCache, "_positions", wrong)


def no_chunks(patch: Patch) -> None:
    patch.setattr(Chunked, "allowed", lambda self, q, k: Causal().allowed(q, k))


def chunk_off_by_one(patch: Patch) -> None:
    """A chunk begins one token late."""
    right = Chunked.allowed
    patch.setattr(Chunked, "allowed", lambda self, q, k: right(self, q - 1, k - 1))


def chunk_that_is_not_emptied(patch: Patch) -> None:
    """The last chunk's tokens stay in the cache, as if the new chunk's were there."""
    patch.setattr(ChunkedCache, "_positions", _positions_of_a_full_chunk)


def _positions_of_a_full_chunk(self: ChunkedCache, newest: Tensor, num_seen: int) -> Tensor:
    slots = torch.arange(min(self.num_slots, num_seen), dtype=torch.int32)[None]
    return torch.minimum(newest - newest % self.size + slots, newest)


def constant_temperature(patch: Patch) -> None:
    attention = NeuronLlama4TunedAttention
    patch.setattr(attention, "apply_rotary_embedding", lambda self, q, k, *_: (q, k, None, None))


def visible_padding(patch: Patch) -> None:
    patch.setattr(Causal, "allowed", lambda self, q, k: k.unsqueeze(1) <= q.unsqueeze(2))


def neighbours_cache_row(patch: Patch) -> None:
    """A decode step reads and writes the cache row of another sequence."""
    right = padding.graph_rows

    def wrong(batch: padding.StepBatch) -> Tensor:
        rows = right(batch)
        return rows.roll(1) if batch.phase is Phase.DECODE else rows

    patch.setattr(padding, "graph_rows", wrong)


def lost_cache_write(patch: Patch) -> None:
    """Decoded tokens leave nothing in the cache, so that an earlier sequence shows through."""
    right = EagerRank.__call__

    def wrong(self: EagerRank, spec: GraphSpec, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        before = list(self.caches)
        outputs = right(self, spec, inputs)
        if spec.phase is Phase.DECODE:
            self.caches[:] = before
        return outputs

    patch.setattr(EagerRank, "__call__", wrong)


def tight_bucket(patch: Patch) -> None:
    """Exactly at an edge, a graph one token too short is chosen."""
    right = GraphPlan.choose

    def wrong(self: GraphPlan, phase: Phase, rows: int, length: int, context: int) -> GraphSpec:
        return right(self, phase, rows, length - 1, context)

    patch.setattr(GraphPlan, "choose", wrong)


def last_column(patch: Patch) -> None:
    """Prefill answers for the last column of the bucket instead of the last token."""
    patch.setattr(NeuronBaseModel, "last_hidden", lambda self, x, inputs: x[:, -1:])


def lost_partial_sum(patch: Patch) -> None:
    patch.setattr(collectives, "_reduce", lambda parts, op: parts[0].clone())


def dropped_bias(patch: Patch) -> None:
    right = layers.linear
    patch.setattr(layers, "linear", lambda x, weight, bias=None: right(x, weight))


def neighbouring_expert(patch: Patch) -> None:
    """One expert of all is mistaken for the next."""
    right = Experts.local
    patch.setattr(
        Experts, "local", lambda self, chosen: right(self, torch.where(chosen == 1, 2, chosen))
    )


def every_rank_is_the_first(patch: Patch) -> None:
    patch.setattr(Experts, "local", lambda self, chosen: chosen)


def weights_that_do_not_sum_to_one(patch: Patch) -> None:
    right = Router.forward

    def wrong(self: Router, x: Tensor) -> Routing:
        weights, experts = right(self, x)
        return Routing(weights * 0.99, experts)

    patch.setattr(Router, "forward", wrong)


def no_clamp(patch: Patch) -> None:
    patch.setattr(glu, "_within", lambda x, limits: x)


def no_yarn(patch: Patch) -> None:
    patch.setattr(Yarn, "frequencies", lambda self, inv_freq, base: inv_freq)


@dataclass(frozen=True)
class Fault:
    """A way to break the library, and the variant, tp degree and options that show it."""

    inject: Callable[[Patch], None]
    variant: str = "llama"
    tp_degree: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)


FAULTS = (
    Fault(late_positions),
    Fault(wrong_rope_base),
    Fault(no_rope_scaling, "llama-llama3"),
    Fault(no_window, "mistral"),
    Fault(window_off_by_one, "mistral"),
    Fault(window_that_does_not_roll, "mistral"),
    Fault(window_that_does_not_roll, "mistral-wide"),
    Fault(no_chunks, "llama4"),
    Fault(chunk_off_by_one, "llama4"),
    Fault(chunk_that_is_not_emptied, "llama4"),
    Fault(constant_temperature, "llama4"),
    Fault(visible_padding),
    Fault(neighbours_cache_row),
    Fault(lost_cache_write),
    Fault(tight_bucket),
    Fault(last_column),
    Fault(lost_partial_sum, tp_degree=2),
    Fault(dropped_bias, "qwen2"),
    Fault(neighbouring_expert, "mixtral"),
    Fault(every_rank_is_the_first, "mixtral", 2, {"moe_ep_degree": 2}),
    Fault(weights_that_do_not_sum_to_one, "mixtral"),
    Fault(lost_partial_sum, "olmoe", 2, {"moe_ep_degree": 2}),
    Fault(no_clamp, "gpt_oss"),
    Fault(no_yarn, "gpt_oss"),
)


@pytest.mark.parametrize(
    "fault", FAULTS, ids=lambda fault: f"{fault.inject.__name__}-{fault.variant}"
)
def test_a_fault_is_noticed(
    fault: Fault, reference_of: Callable[[str], Reference], monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = reference_of(fault.variant)
    fault.inject(monkeypatch)
    with pytest.raises(AssertionError):
        check_all_buckets(load(reference, fault.tp_degree, **fault.options), reference)
