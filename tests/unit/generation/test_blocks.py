from __future__ import annotations

import pytest

from nxdi.errors import BucketError, ConfigError, ShapeError
from nxdi.generation.blocks import BlockManager

SIZE = 4
PROMPT = list(range(10, 20))  # two full blocks and two tokens more


def written(blocks: BlockManager, sequence: str, tokens: list[int]) -> BlockManager:
    """The manager after a sequence has been admitted and computed."""
    num_shared = blocks.admit(sequence, tokens)
    assert blocks.grow(sequence, len(tokens))
    blocks.fill(sequence, tokens[num_shared:])
    return blocks


def sharing(num_blocks: int = 8) -> BlockManager:
    return BlockManager(num_blocks, SIZE, shares_prefixes=True)


def test_blocks_cover_the_tokens() -> None:
    blocks = BlockManager(8, SIZE)
    assert blocks.admit("a", PROMPT) == 0
    assert blocks.grow("a", len(PROMPT))
    assert blocks.table("a") == [0, 1, 2]
    assert blocks.num_free == 5
    assert blocks.grow("a", 12)
    assert blocks.table("a") == [0, 1, 2]
    assert blocks.grow("a", 13)
    assert blocks.table("a") == [0, 1, 2, 3]


def test_slots_follow_the_table() -> None:
    blocks = BlockManager(8, SIZE)
    blocks.admit("a", [1])
    blocks.admit("b", [1])
    for num_tokens in (1, 5):
        assert blocks.grow("a", num_tokens)
        assert blocks.grow("b", num_tokens)
    assert blocks.table("a") == [0, 2]
    assert blocks.slots("a", 2, 6) == [2, 3, 8, 9]
    assert blocks.slots("a", 3, 3) == []
    with pytest.raises(ShapeError, match="2 blocks of 4 tokens; grow it first"):
        blocks.slots("a", 7, 9)


def test_growing_is_all_or_nothing() -> None:
    blocks = written(BlockManager(4, SIZE), "a", PROMPT)
    blocks.admit("b", [1])
    assert not blocks.grow("b", 5)
    assert (blocks.table("b"), blocks.num_free) == ([], 1)
    assert blocks.grow("b", 4)
    assert blocks.num_free == 0


def test_a_freed_block_is_used_again() -> None:
    blocks = written(BlockManager(3, SIZE), "a", PROMPT)
    blocks.free("a")
    assert blocks.num_free == 3
    assert written(blocks, "b", PROMPT).table("b") == [0, 1, 2]


def test_full_blocks_are_shared() -> None:
    blocks = written(sharing(), "a", PROMPT)
    assert blocks.admit("b", [*PROMPT[:9], 99]) == 8
    assert blocks.grow("b", 10)
    assert blocks.table("a")[:2] == blocks.table("b")[:2]
    assert blocks.table("a")[2] != blocks.table("b")[2]
    assert blocks.num_free == 4
    blocks.free("a")
    assert blocks.num_free == 5


def test_only_what_was_written_is_shared() -> None:
    blocks = sharing()
    blocks.admit("a", PROMPT)
    blocks.grow("a", len(PROMPT))
    assert blocks.admit("b", PROMPT) == 0
    blocks.fill("a", PROMPT[:5])
    assert blocks.admit("c", PROMPT) == 4


def test_the_tokens_before_a_block_are_part_of_what_it_holds() -> None:
    blocks = written(sharing(), "a", [1, 1, 1, 1, 2, 2, 2, 2, 3])
    assert blocks.admit("b", [2, 2, 2, 2, 3]) == 0
    assert blocks.admit("c", [1, 1, 1, 9, 2, 2, 2, 2, 3]) == 0
    assert blocks.admit("d", [1, 1, 1, 1, 2, 2, 2, 2, 4]) == 8


def test_the_last_token_is_never_shared() -> None:
    blocks = written(sharing(), "a", PROMPT[:8])
    assert blocks.admit("b", PROMPT[:8]) == 4
    assert blocks.admit("c", PROMPT[:9]) == 8
    assert blocks.admit("d", PROMPT[:4]) == 0


def test_nothing_is_shared_unless_asked() -> None:
    blocks = written(BlockManager(8, SIZE), "a", PROMPT)
    assert blocks.find(PROMPT) == []
    assert blocks.admit("b", PROMPT) == 0


def test_a_block_written_twice_is_kept_once() -> None:
    blocks = sharing()
    for name in ("a", "b"):
        blocks.admit(name, PROMPT)
        blocks.grow(name, len(PROMPT))
    assert blocks.num_free == 2
    blocks.fill("a", PROMPT)
    blocks.fill("b", PROMPT)
    assert blocks.table("a")[:2] == blocks.table("b")[:2]
    assert blocks.num_free == 4


def test_a_sequence_is_found_after_its_end_until_evicted() -> None:
    blocks = written(sharing(4), "a", PROMPT)
    blocks.free("a")
    assert blocks.num_free == 4
    assert blocks.find(PROMPT) == [0, 1]
    written(blocks, "b", [1] * 12)  # the two unknown blocks, then the end of the chain
    assert blocks.find(PROMPT) == [0]
    assert blocks.admit("c", PROMPT) == 4


def test_the_least_recently_used_goes_first() -> None:
    blocks = sharing(4)
    for name, token in (("a", 1), ("b", 2), ("c", 3)):
        written(blocks, name, [token] * 4)
        blocks.free(name)
    written(blocks, "again", [1] * 5)
    blocks.free("again")
    written(blocks, "new", [4] * 8)
    assert [len(blocks.find([token] * 4)) for token in (1, 2, 3)] == [1, 0, 1]


def test_a_fork_shares_full_blocks() -> None:
    blocks = written(BlockManager(8, SIZE), "a", PROMPT)
    assert blocks.fork("a", "b", 10) == 8
    assert blocks.fork("a", "c", 8) == 4
    blocks.grow("b", 10)
    assert blocks.table("b") == [0, 1, 3]
    blocks.free("a")
    assert blocks.num_free == 5
    blocks.free("b")
    assert blocks.num_free == 7


@pytest.mark.parametrize("num_tokens", [0, 11])
def test_a_fork_needs_computed_tokens(num_tokens: int) -> None:
    blocks = written(BlockManager(8, SIZE), "a", PROMPT)
    with pytest.raises(ShapeError):
        blocks.fork("a", "b", num_tokens)
    with pytest.raises(ConfigError, match="'b' has no blocks"):
        blocks.table("b")


def test_ending_twice() -> None:
    blocks = written(sharing(), "a", PROMPT)
    blocks.free("a")
    with pytest.raises(ConfigError, match="'a' has no blocks: it was never admitted, or is freed"):
        blocks.free("a")
    assert blocks.num_free == 8


def test_beginning_twice() -> None:
    blocks = written(sharing(), "a", PROMPT)
    for begin in (lambda: blocks.admit("a", [1]), lambda: blocks.fork("a", "a", 4)):
        with pytest.raises(ConfigError, match="'a' has blocks already"):
            begin()
    assert blocks.table("a") == [0, 1, 2]


def test_more_tokens_than_the_pool() -> None:
    blocks = BlockManager(2, SIZE)
    with pytest.raises(BucketError, match=r"9 tokens do not fit .* 2 blocks of 4 .* pa_num_blocks"):
        blocks.admit("a", [1] * 9)
    blocks.admit("a", [1] * 8)
    with pytest.raises(BucketError):
        blocks.grow("a", 9)


def test_no_tokens() -> None:
    with pytest.raises(ShapeError, match="'a' has no tokens"):
        BlockManager(2, SIZE).admit("a", [])


def test_writing_past_the_blocks() -> None:
    blocks = sharing()
    blocks.admit("a", PROMPT)
    blocks.grow("a", 5)
    blocks.fill("a", PROMPT[:5])
    with pytest.raises(ShapeError, match=r"4 tokens written .* room for 3"):
        blocks.fill("a", PROMPT[5:9])
    blocks.fill("a", PROMPT[5:8])
    assert len(blocks.find(PROMPT)) == 2


@pytest.mark.parametrize(("num_blocks", "block_size"), [(0, 4), (4, 0)])
def test_an_empty_pool(num_blocks: int, block_size: int) -> None:
    with pytest.raises(ConfigError, match="holds nothing"):
        BlockManager(num_blocks, block_size)
