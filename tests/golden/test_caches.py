"""Logits and greedy tokens equal transformers', whatever holds the cache and however prompts come.

Prompts are whole or in pieces; the cache has rows or blocks; prefixes are computed or found.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from golden import table
from golden.parity import (
    Reference,
    check_all_buckets,
    check_generate,
    check_logits,
    load,
    make_reference,
)
from nxdi.errors import ConfigError
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from tiny_models import COMPILED

Get = Callable[[str], Reference]

PAGED = {"is_block_kv_layout": True, "pa_block_size": 8}
# The longest piece sets the largest prefill bucket.
CACHES: dict[str, dict[str, Any]] = {
    "paged": PAGED,
    "paged-odd": {"is_block_kv_layout": True, "pa_block_size": 5},
    "pieces-16": {"windowed_context_encoding_size": 16},
    "pieces-64": {"windowed_context_encoding_size": 64},
    "paged-pieces-16": {**PAGED, "windowed_context_encoding_size": 16},
    "chunked-7": {
        **PAGED,
        "max_context_length": 7,
        "context_encoding_buckets": [7],
        "chunked_prefill_config": {},
    },
}
LENGTHS = [32, 17, 31]


@pytest.mark.parametrize("caches", CACHES)
@pytest.mark.parametrize("tp_degree", [1, 2])
@pytest.mark.parametrize("name", table.ROWS)
def test_every_layout(name: str, tp_degree: int, caches: str, reference_of: Get) -> None:
    reference = reference_of(name)
    app = load(reference, tp_degree, **CACHES[caches])
    if tp_degree == 1:
        check_all_buckets(app, reference)
    else:
        check_generate(app, reference, LENGTHS, "left")


@pytest.mark.parametrize("name", [v.name for v in table.VARIANTS if v.name not in table.ROWS])
def test_every_other_variant_in_pieces_over_blocks(name: str, reference_of: Get) -> None:
    reference = reference_of(name)
    if "rope_scaling" in table.BY_NAME[name].overrides and name.startswith("phi3"):
        with pytest.raises(ConfigError, match=r"LongRoPE .* cannot come in pieces"):
            load(reference, 1, **CACHES["paged-pieces-16"])
        return
    app = load(reference, 1, **CACHES["paged-pieces-16"])
    check_generate(app, reference, LENGTHS, "left")


@pytest.fixture(scope="module")
def long_reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """Prompts of several chunks, and continuations across one more edge."""
    folder = tmp_path_factory.mktemp("long")
    return make_reference(table.BY_NAME["llama4"], folder, (100, 139, 201), num_new=24)


@pytest.mark.parametrize("tp_degree", [1, 2])
@pytest.mark.parametrize("is_paged", [False, True])
@pytest.mark.parametrize("piece_len", [16, 64, 100])
def test_pieces_end_anywhere_in_a_chunk(
    piece_len: int, is_paged: bool, tp_degree: int, long_reference: Reference
) -> None:
    options: dict[str, Any] = {
        "seq_len": 240,
        "max_context_length": 208,
        "context_encoding_buckets": [208],
        "token_generation_buckets": [120, 240],
        "windowed_context_encoding_size": piece_len,
    }
    app = load(long_reference, tp_degree, **(PAGED if is_paged else {}), **options)
    check_generate(app, long_reference, [100, 201, 139], "left")


COMPILED_CASES = [
    *(("llama", "paged", 1), ("llama4", "paged", 2)),
    *(("llama4", "pieces-16", 1), ("mistral", "pieces-16", 2)),
    *(("llama4", "paged-pieces-16", 1), ("gemma3", "paged-pieces-16", 1)),
    ("deepseek", "paged-pieces-16", 1),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "caches", "tp_degree"), COMPILED_CASES)
@pytest.mark.usefixtures("two_threads")
def test_compiled(name: str, caches: str, tp_degree: int, reference_of: Get) -> None:
    reference = reference_of(name)
    app = load(reference, tp_degree, **COMPILED, **CACHES[caches])
    check_generate(app, reference, LENGTHS, "left")


@pytest.mark.slow
@pytest.mark.usefixtures("two_threads")
def test_a_prefix_that_is_in_the_cache_compiled(reference_of: Get) -> None:
    check_prefix(prefix_app(reference_of("llama4"), **COMPILED), reference_of("llama4"), 32, 16)


def prefix_app(reference: Reference, **options: Any) -> NeuronBaseForCausalLM:
    return load(reference, 1, **{**PAGED, "is_prefix_caching": True, **options})


def blocks_of(row: int) -> Tensor:
    """A table of 12 blocks, out of order."""
    return (torch.randperm(12, generator=torch.Generator().manual_seed(row)) + 12 * row).int()[None]


@pytest.mark.parametrize("prefix_buckets", [None, [24, 40]])
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("num_shared", [0, 8, 24, 56])
@pytest.mark.parametrize("name", ["llama", "mistral", "llama4", "gemma3", "deepseek"])
def test_a_prefix_that_is_in_the_cache(
    name: str,
    num_shared: int,
    batch_size: int,
    prefix_buckets: list[int] | None,
    reference_of: Get,
) -> None:
    reference = reference_of(name)
    app = prefix_app(reference, batch_size=batch_size, prefix_buckets=prefix_buckets)
    check_prefix(app, reference, 64, num_shared)


def check_prefix(
    app: NeuronBaseForCausalLM, reference: Reference, length: int, num_shared: int
) -> None:
    """NxDI's contract: lengths before and after the step, a block table and slots."""
    prompt = reference.prompts[length][None]
    table = blocks_of(0)
    if num_shared:
        app(prompt[:, :num_shared], block_table=table)
    computed, full = torch.tensor([[num_shared]]), torch.tensor([[length]])
    places = torch.arange(num_shared, length)
    slots = table[0, places // 8] * 8 + places % 8
    output = app(
        prompt[:, num_shared:],
        block_table=table,
        slot_mapping=slots[None],
        full_context_lens=full,
        computed_context_lens=computed,
    )
    assert output.logits is not None
    check_logits(output.logits[0, -1], reference.logits[length][0])
    for step in range(1, 8):
        token = reference.tokens[length][step - 1].view(1, 1)
        place = torch.tensor([[length - 1 + step]])
        output = app(token, position_ids=place, block_table=table)
        assert output.logits is not None
        check_logits(output.logits[0, -1], reference.logits[length][step])


def test_rows_share_the_blocks_of_a_prefix(reference_of: Get) -> None:
    """Two rows read the same blocks and write their own."""
    reference = reference_of("llama")
    app = prefix_app(reference)
    prompt = reference.prompts[64]
    shared = blocks_of(0)[:, :4]
    app(prompt[None, :32], block_table=shared)
    own = torch.cat([blocks_of(1)[:, :8], blocks_of(2)[:, :8]])
    tables = torch.cat([shared.expand(2, -1), own], dim=1)
    output = app(
        prompt[None, 32:].expand(2, -1),
        position_ids=torch.arange(32, 64)[None].expand(2, -1),
        block_table=tables,
    )
    assert output.logits is not None
    for row in range(2):
        check_logits(output.logits[row, -1], reference.logits[64][0])


@pytest.mark.parametrize("name", ["mistral", "llama4"])
def test_rows_of_several_lengths_extend_at_once(name: str, reference_of: Get) -> None:
    reference = reference_of(name)
    app = load(reference, 1, windowed_context_encoding_size=16)
    lengths = [33, 17, 64]
    starts = [16, 5, 39]
    for row, (length, start) in enumerate(zip(lengths, starts, strict=True)):
        prompt = reference.prompts[length][None]
        app(prompt[:, :start], seq_ids=torch.tensor([2 - row]))
    width = max(n - s for n, s in zip(lengths, starts, strict=True))
    ids, places = torch.zeros(3, width, dtype=torch.int64), torch.full((3, width), -1)
    for row, (length, start) in enumerate(zip(lengths, starts, strict=True)):
        ids[row, : length - start] = reference.prompts[length][start:]
        places[row, : length - start] = torch.arange(start, length)
    output = app(ids, position_ids=places, seq_ids=torch.tensor([2, 1, 0]))
    assert output.logits is not None
    for row, length in enumerate(lengths):
        check_logits(output.logits[row, -1], reference.logits[length][0])
