"""The block manager under any order of operations, checked against a pool that is really written.

Every slot of the pool holds the whole history that led to it, as a real cache does in effect.
"""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from nxdi.generation.blocks import BlockManager

NUM_BLOCKS, SIZE = 7, 2
# Two tokens only, so that sequences often start alike.
TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=NUM_BLOCKS * SIZE)


class Sequences(RuleBasedStateMachine):
    """Some sequences that come, compute, share, are preempted and end."""

    num_operations = 0

    @initialize(shares_prefixes=st.booleans())
    def start(self, shares_prefixes: bool) -> None:
        self.blocks = BlockManager(NUM_BLOCKS, SIZE, shares_prefixes)
        self.pool: dict[int, tuple[int, ...]] = {}
        self.tokens: dict[int, list[int]] = {}
        self.num_computed: dict[int, int] = {}
        self.num_started = 0

    def new_id(self) -> int:
        self.num_started += 1
        return self.num_started

    def pick(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.tokens)))

    def admit(self, sequence: int, tokens: list[int]) -> None:
        self.begin(sequence, tokens, self.blocks.admit(sequence, tokens))

    def begin(self, sequence: int, tokens: list[int], num_shared: int) -> None:
        assert num_shared % SIZE == 0
        assert num_shared < len(tokens)
        self.tokens[sequence], self.num_computed[sequence] = tokens, num_shared

    def end(self, sequence: int) -> list[int]:
        self.blocks.free(sequence)
        del self.num_computed[sequence]
        return self.tokens.pop(sequence)

    @rule(tokens=TOKENS)
    def allocate(self, tokens: list[int]) -> None:
        self.admit(self.new_id(), tokens)

    @precondition(lambda self: self.tokens)
    @rule(data=st.data(), more=TOKENS)
    def share(self, data: st.DataObject, more: list[int]) -> None:
        """A sequence that starts as another one does."""
        start = self.tokens[self.pick(data)]
        self.admit(self.new_id(), (start + more)[: NUM_BLOCKS * SIZE])

    @precondition(lambda self: any(self.num_computed.values()))
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        computed = [name for name, number in self.num_computed.items() if number]
        parent, child = data.draw(st.sampled_from(sorted(computed))), self.new_id()
        number = data.draw(st.integers(1, self.num_computed[parent]))
        num_shared = self.blocks.fork(parent, child, number)
        self.begin(child, self.tokens[parent][:number], num_shared)

    @precondition(lambda self: self.tokens)
    @rule(data=st.data(), number=st.integers(1, 2 * SIZE))
    def compute(self, data: st.DataObject, number: int) -> None:
        """A chunk, or a new token once all are computed; blocks may run out."""
        sequence = self.pick(data)
        tokens, start = self.tokens[sequence], self.num_computed[sequence]
        if start == len(tokens) < NUM_BLOCKS * SIZE:
            tokens.append(data.draw(st.integers(0, 1)))
        stop = min(start + number, len(tokens))
        missing = self.blocks.num_needed(stop) - len(self.blocks.table(sequence))
        free, table = self.blocks.num_free, self.blocks.table(sequence)
        assert self.blocks.grow(sequence, stop) is (missing <= free)
        if missing > free:
            assert (self.blocks.num_free, self.blocks.table(sequence)) == (free, table)
            return
        for position, slot in enumerate(self.blocks.slots(sequence, start, stop), start):
            self.pool[slot] = tuple(tokens[: position + 1])
        self.blocks.fill(sequence, tokens[start:stop])
        self.num_computed[sequence] = stop

    @precondition(lambda self: self.tokens)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.end(self.pick(data))

    @precondition(lambda self: self.tokens)
    @rule(data=st.data())
    def preempt(self, data: st.DataObject) -> None:
        sequence = self.pick(data)
        self.admit(sequence, self.end(sequence))

    @rule()
    def evict(self) -> None:
        """One sequence takes all that is free, so that nothing stays findable without an owner."""
        sequence, number = self.new_id(), self.blocks.num_free
        if not number:
            return
        self.blocks.admit(sequence, [2])
        assert self.blocks.grow(sequence, number * SIZE)
        assert self.blocks.num_free == 0
        self.blocks.free(sequence)
        assert self.blocks.num_free == number

    @invariant()
    def count(self) -> None:
        type(self).num_operations += 1

    @invariant()
    def every_block_is_owned_exactly_as_often_as_tables_say(self) -> None:
        tables = [self.blocks.table(name) for name in self.tokens]
        owners = Counter(block for table in tables for block in table)
        assert [owners[block] for block in range(NUM_BLOCKS)] == self.blocks._num_owners
        assert all(len(set(table)) == len(table) for table in tables)
        unowned = [*self.blocks._unknown, *self.blocks._findable]
        assert sorted(unowned) == [block for block in range(NUM_BLOCKS) if not owners[block]]
        assert self.blocks.num_free == len(unowned)

    @invariant()
    def a_shared_block_is_computed_for_all_its_owners(self) -> None:
        for name, tokens in self.tokens.items():
            slots = self.blocks.slots(name, 0, self.num_computed[name])
            assert [self.pool[slot] for slot in slots] == [
                tuple(tokens[: i + 1]) for i in range(len(slots))
            ]
            for index, block in enumerate(self.blocks.table(name)):
                if self.blocks._num_owners[block] > 1:
                    assert self.num_computed[name] >= (index + 1) * SIZE

    @invariant()
    def a_findable_block_holds_what_was_written(self) -> None:
        blocks = self.blocks
        assert {held: block for block, held in blocks._content.items()} == blocks._holding
        assert blocks.shares_prefixes or not blocks._content
        assert not set(blocks._unknown) & blocks._content.keys()
        for block, (_, tokens) in blocks._content.items():
            history = self.pool[block * SIZE + SIZE - 1]
            assert history[-SIZE:] == tokens
            assert blocks.find(history)[-1] == block
            assert len(blocks.find(history)) == len(history) // SIZE

    @invariant()
    def a_chain_is_evicted_from_its_end(self) -> None:
        order = list(self.blocks._findable)
        for block, (before, _) in self.blocks._content.items():
            if before != -1 and before in order:
                assert order.index(block) < order.index(before)


# Invariants are checked once before the first rule and once after each.
def test_any_order_of_operations() -> None:
    Sequences.num_operations = 0
    run_state_machine_as_test(Sequences, settings=settings(max_examples=40, stateful_step_count=50))
    assert Sequences.num_operations >= 1_000


@pytest.mark.slow
def test_any_long_order_of_operations() -> None:
    Sequences.num_operations = 0
    run_state_machine_as_test(
        Sequences, settings=settings(max_examples=200, stateful_step_count=100)
    )
    assert Sequences.num_operations >= 10_000
