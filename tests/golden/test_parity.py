"""Logits and greedy tokens equal transformers', whatever the buckets, padding, ranks and rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from golden import table
from golden.parity import (
    Reference,
    check_all_buckets,
    check_generate,
    check_logits,
    check_prefill,
    load,
    make_reference,
)
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from tiny_models import load_app

Get = Callable[[str], Reference]

LONG_BUCKETS: dict[str, Any] = {
    "seq_len": 640,
    "enable_bucketing": True,
    "context_encoding_buckets": [128, 512, 640],
    "token_generation_buckets": [128, 512, 640],
}
MODES = {
    "sequence-parallel": {"sequence_parallel_enabled": True},
    "vocab-parallel": {"vocab_parallel": True},
    "both": {"sequence_parallel_enabled": True, "vocab_parallel": True},
}


BLOCKS = {"blockwise_matmul_config": {"block_size": 8}}
# (tp degree, options) of mixtures of experts.
SPREAD: dict[str, tuple[int, dict[str, Any]]] = {
    "blocks": (1, BLOCKS),
    "two-places": (2, {**BLOCKS, "moe_ep_degree": 2}),
    "four-places": (4, {"moe_ep_degree": 4}),
    "two-by-two": (4, {**BLOCKS, "moe_tp_degree": 2, "moe_ep_degree": 2}),
    "decode-by-expert": (
        4,
        {"hybrid_sharding_config": {"moe_cte_tp_degree": 4, "moe_tkg_ep_degree": 4}},
    ),
    "prefill-by-expert": (
        4,
        {
            **BLOCKS,
            "hybrid_sharding_config": {
                **{"moe_cte_tp_degree": 1, "moe_cte_ep_degree": 4},
                **{"moe_tkg_tp_degree": 2, "moe_tkg_ep_degree": 2},
            },
        },
    ),
    "scatter-gather": (2, {"moe_ep_degree": 2, "ep_dispatch_cc_option": "RS_AG"}),
    "sequences": (2, {**BLOCKS, "moe_ep_degree": 2, "sequence_parallel_enabled": True}),
    "exchanged": (
        2,
        {
            "moe_ep_degree": 2,
            "sequence_parallel_enabled": True,
            "ep_dispatch_cc_option": "A2A",
        },
    ),
    "room-for-all": (2, {"moe_ep_degree": 2, "capacity_factor": 100.0}),
}


def case(variant: table.Variant, tp_degree: int) -> Any:
    """Each family, and each other number of heads, at every degree; other variants always at 2."""
    differs = variant.name == variant.family or "num_attention_heads" in variant.overrides
    marks = () if differs or tp_degree == 2 else pytest.mark.slow
    return pytest.param(variant.name, tp_degree, marks=marks)


EVERYWHERE = [case(variant, tp) for variant in table.VARIANTS for tp in table.TP_DEGREES]


@pytest.mark.parametrize(("name", "tp_degree"), [*EVERYWHERE, *table.WIDE])
def test_every_variant_at_every_bucket_edge(name: str, tp_degree: int, reference_of: Get) -> None:
    reference = reference_of(name)
    check_all_buckets(load(reference, tp_degree), reference)


@pytest.mark.parametrize(
    ("mode", "tp_degree"),
    [
        *(("sequence-parallel", 2), ("vocab-parallel", 2), ("both", 4)),
        pytest.param("sequence-parallel", 4, marks=pytest.mark.slow),
        pytest.param("vocab-parallel", 4, marks=pytest.mark.slow),
        pytest.param("both", 2, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", table.MODES)
def test_other_ways_to_spread_a_model(
    name: str, mode: str, tp_degree: int, reference_of: Get
) -> None:
    reference = reference_of(name)
    app = load(reference, tp_degree, **MODES[mode])
    check_generate(app, reference, [32, 17, 31], "left")


@pytest.mark.parametrize("spread", SPREAD)
@pytest.mark.parametrize("name", table.EXPERTS)
def test_experts_spread_over_ranks(name: str, spread: str, reference_of: Get) -> None:
    """Prefill and decode, of several rows and of one."""
    reference = reference_of(name)
    tp_degree, options = SPREAD[spread]
    app = load(reference, tp_degree, token_generation_batches=[1], **options)
    check_generate(app, reference, [32, 17, 31], "left")
    check_generate(app, reference, [63], "right")


@pytest.mark.parametrize("tp_degree", [1, 2])
@pytest.mark.parametrize("name", table.LONG)
def test_past_position_512(name: str, tp_degree: int, tmp_path: Path) -> None:
    reference = make_reference(table.BY_NAME[name], tmp_path, (505, 512, 513), num_new=24)
    app = load_app(tmp_path, batch_size=3, tp_degree=tp_degree, **LONG_BUCKETS)
    check_generate(app, reference, [505, 512], "right")
    check_prefill(app, reference, [513, 505], "left")


@pytest.mark.parametrize("tp_degree", [1, 2])
@pytest.mark.parametrize("piece_len", [None, 16])
@pytest.mark.parametrize("name", table.ROWS)
def test_rows_in_any_order_and_number(
    name: str, piece_len: int | None, tp_degree: int, reference_of: Get
) -> None:
    """Sequences live in cache rows 2, 0, 3, 1 and are stepped in changing groups and orders."""
    reference = reference_of(name)
    options: dict[str, Any] = {"token_generation_batches": [1, 2], "ctx_batch_size": 2}
    options["windowed_context_encoding_size"] = piece_len
    app = load(reference, tp_degree, batch_size=4, **options)
    row_of = {15: 2, 17: 0, 31: 3, 16: 1}
    ids, mask = reference.batch(list(row_of), "right")
    out = app(ids, attention_mask=mask, seq_ids=torch.tensor(list(row_of.values())))
    progress = dict.fromkeys(row_of, 0)
    _check_step(out, progress, list(row_of), reference)
    groups = [[17], [17, 16], [31, 15], [16, 31, 17, 15], [15], [15, 17, 31]]
    for group in groups * 3:
        _step(app, reference, progress, group, row_of)
    # A new prompt takes over row 3, whose neighbours go on.
    row_of[33], progress[33] = row_of.pop(31), 0
    out = app(reference.prompts[33][None], seq_ids=torch.tensor([row_of[33]]))
    _check_step(out, progress, [33], reference)
    for group in ([33, 15], [16, 33, 17], [33]):
        _step(app, reference, progress, group, row_of)


def _step(
    app: NeuronBaseForCausalLM,
    reference: Reference,
    progress: dict[int, int],
    group: list[int],
    row_of: dict[int, int],
) -> None:
    """One decode step of the sequences in `group`, each fed the token transformers chose."""
    tokens = torch.stack([reference.tokens[n][progress[n]] for n in group])
    positions = torch.tensor([n + progress[n] for n in group])
    seq_ids = torch.tensor([row_of[n] for n in group])
    out = app(tokens[:, None], position_ids=positions[:, None], seq_ids=seq_ids)
    for length in group:
        progress[length] += 1
    _check_step(out, progress, group, reference)


def _check_step(out: Any, progress: dict[int, int], group: list[int], reference: Reference) -> None:
    for row, length in enumerate(group):
        check_logits(out.logits[row, -1], reference.logits[length][progress[length]])
