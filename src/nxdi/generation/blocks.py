"""Which sequence owns which block of a paged cache. Plain Python: no tensors, no model.

A block holds the keys and values of `block_size` consecutive tokens of one sequence. What a full
block holds is decided by its tokens and by all tokens before them, so sequences that start alike
may share their full blocks.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from nxdi.errors import BucketError, ConfigError, ShapeError

SequenceId = int | str
# What a full block holds: the block before it (that of the root is _ROOT), and its own tokens.
# A block outlives those after it in every chain, so the number of the one before says all.
_Content = tuple[int, tuple[int, ...]]
_ROOT = -1


@dataclass
class _Table:
    """The blocks of one sequence, and the tokens in the last one that is not full."""

    blocks: list[int]
    tail: list[int] = field(default_factory=list)
    num_full: int = 0


class BlockManager:
    """Hands out blocks to sequences, counts their owners, and remembers what full blocks hold.

    A block that nobody owns any more stays findable by its contents until its memory is needed;
    the least recently used goes first, and the end of a chain before its start.
    """

    def __init__(self, num_blocks: int, block_size: int, shares_prefixes: bool = False) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ConfigError(
                f"a cache of {num_blocks} blocks of {block_size} tokens holds nothing; "
                "both must be at least 1"
            )
        self.num_blocks, self.block_size = num_blocks, block_size
        self.shares_prefixes = shares_prefixes
        self._tables: dict[SequenceId, _Table] = {}
        self._num_owners = [0] * num_blocks
        self._content: dict[int, _Content] = {}
        self._holding: dict[_Content, int] = {}  # the inverse of _content
        # Blocks without owner: those that hold nothing known, lowest first, and the findable ones,
        # least recently used first.
        self._unknown = list(range(num_blocks))
        self._findable: OrderedDict[int, None] = OrderedDict()

    @property
    def num_tokens(self) -> int:
        """Tokens that the whole pool holds."""
        return self.num_blocks * self.block_size

    @property
    def num_free(self) -> int:
        """Blocks that nobody owns, findable or not."""
        return len(self._unknown) + len(self._findable)

    def num_needed(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def admit(self, sequence: SequenceId, tokens: Sequence[int]) -> int:
        """Begin a sequence whose first tokens are known.

        Returns: how many leading tokens it finds computed; never all of them, so that a step over
        the others has logits.
        Raises: ConfigError if the sequence is there already; BucketError if the pool is too small.
        """
        self._begin(sequence, len(tokens))
        return self._share(sequence, self.find(tokens)[: self._num_sharable(len(tokens))])

    def fork(self, parent: SequenceId, child: SequenceId, num_tokens: int) -> int:
        """Begin a sequence whose first `num_tokens` tokens are those of `parent`, and computed.

        Returns and raises: as `admit`.
        """
        table = self._table(parent)
        num_written = table.num_full * self.block_size + len(table.tail)
        if num_tokens > num_written:
            raise ShapeError(
                f"sequence {parent!r} cannot be forked after {num_tokens} tokens: {num_written} "
                "are computed; fork it later, or after fewer"
            )
        self._begin(child, num_tokens)
        return self._share(child, table.blocks[: self._num_sharable(num_tokens)])

    def find(self, tokens: Sequence[int]) -> list[int]:
        """The blocks that hold the leading tokens, as far as they are known."""
        found: list[int] = []
        for content in self._cut(tokens):
            block = self._holding.get((found[-1] if found else _ROOT, content))
            if block is None:
                break
            found.append(block)
        return found

    def grow(self, sequence: SequenceId, num_tokens: int) -> bool:
        """Own enough blocks for `num_tokens` tokens: all that are missing, or none.

        Returns: whether there was room.
        Raises: BucketError if the whole pool is too small.
        """
        blocks = self._table(sequence).blocks
        self._check_size(num_tokens)
        missing = self.num_needed(num_tokens) - len(blocks)
        if missing > self.num_free:
            return False
        blocks += [self._take() for _ in range(missing)]
        return True

    def fill(self, sequence: SequenceId, tokens: Sequence[int]) -> None:
        """Say that the model has written these tokens after those written before.

        Blocks that became full can be found from now on. One that holds what another block holds
        already is given back, and the sequence shares that one.
        Raises: ShapeError for more tokens than the sequence has blocks for.
        """
        table = self._table(sequence)
        room = (len(table.blocks) - table.num_full) * self.block_size - len(table.tail)
        if len(tokens) > room:
            raise ShapeError(
                f"{len(tokens)} tokens written to sequence {sequence!r}, which has room for "
                f"{room}; grow it first"
            )
        table.tail += tokens
        for content in self._cut(table.tail):
            if self.shares_prefixes:
                self._remember(table, content)
            table.num_full += 1
        del table.tail[: len(table.tail) // self.block_size * self.block_size]

    def free(self, sequence: SequenceId) -> None:
        """End a sequence; what it alone owned becomes free.

        Raises: ConfigError if there is no such sequence, or no longer.
        """
        blocks = self._table(sequence).blocks
        del self._tables[sequence]
        for block in reversed(blocks):  # so that the end of a chain is evicted before its start
            self._release(block)

    def table(self, sequence: SequenceId) -> list[int]:
        """The block table: the blocks of a sequence in order."""
        return list(self._table(sequence).blocks)

    def slots(self, sequence: SequenceId, start: int, stop: int) -> list[int]:
        """Where the cache holds the positions from `start` to `stop`: block * block_size + offset.

        Raises: ShapeError for positions that have no block.
        """
        blocks, size = self._table(sequence).blocks, self.block_size
        if not 0 <= start <= stop <= len(blocks) * size:
            raise ShapeError(
                f"positions {start} to {stop} of sequence {sequence!r}, which has {len(blocks)} "
                f"blocks of {size} tokens; grow it first"
            )
        return [blocks[i // size] * size + i % size for i in range(start, stop)]

    def _table(self, sequence: SequenceId) -> _Table:
        if sequence not in self._tables:
            raise ConfigError(
                f"sequence {sequence!r} has no blocks: it was never admitted, or is freed already"
            )
        return self._tables[sequence]

    def _begin(self, sequence: SequenceId, num_tokens: int) -> None:
        if sequence in self._tables:
            raise ConfigError(f"sequence {sequence!r} has blocks already; free it first")
        if num_tokens < 1:
            raise ShapeError(f"sequence {sequence!r} has no tokens; it needs at least one")
        self._check_size(num_tokens)

    def _check_size(self, num_tokens: int) -> None:
        if num_tokens > self.num_tokens:
            raise BucketError(
                f"{num_tokens} tokens do not fit the cache of {self.num_blocks} blocks of "
                f"{self.block_size} tokens; raise pa_num_blocks and compile again"
            )

    def _num_sharable(self, num_tokens: int) -> int:
        """Full blocks before the last token, which is always computed anew."""
        return (num_tokens - 1) // self.block_size

    def _share(self, sequence: SequenceId, blocks: list[int]) -> int:
        for block in blocks:
            self._own(block)
        self._tables[sequence] = _Table(blocks, num_full=len(blocks))
        return len(blocks) * self.block_size

    def _cut(self, tokens: Sequence[int]) -> Iterator[tuple[int, ...]]:
        """The tokens of each full block."""
        size = self.block_size
        return (tuple(tokens[i - size : i]) for i in range(size, len(tokens) + 1, size))

    def _remember(self, table: _Table, tokens: tuple[int, ...]) -> None:
        """Make the next block of a sequence findable, or take the one that already is."""
        index = table.num_full
        block = table.blocks[index]
        content = (table.blocks[index - 1] if index else _ROOT, tokens)
        known = self._holding.setdefault(content, block)
        if known == block:
            self._content[block] = content
            return
        self._own(known)
        table.blocks[index] = known
        self._release(block)

    def _take(self) -> int:
        """A block that nobody owns; one that is findable is forgotten if there is no other."""
        if self._unknown:
            block = heapq.heappop(self._unknown)
        else:
            block, _ = self._findable.popitem(last=False)
            del self._holding[self._content.pop(block)]
        self._num_owners[block] = 1
        return block

    def _own(self, block: int) -> None:
        self._findable.pop(block, None)
        self._num_owners[block] += 1

    def _release(self, block: int) -> None:
        self._num_owners[block] -= 1
        if self._num_owners[block]:
            return
        if block in self._content:
            self._findable[block] = None
        else:
            heapq.heappush(self._unknown, block)
