"""What is kept of each sequence, such as its row of a draft's cache, for as many as run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable
from typing import Generic, TypeVar

StateT = TypeVar("StateT")


class CacheRows(Generic[StateT]):
    """What is known of each sequence's row. A new one gets a free row, or that of one long gone.

    make: the state of a row that was given to a sequence, from its number.
    """

    def __init__(self, num_rows: int, make: Callable[[int], StateT]) -> None:
        self._num_rows, self._make = num_rows, make
        # By sequence, that used last at the end.
        self._rows: dict[Hashable, tuple[int, StateT]] = {}

    def find(self, sequence: Hashable) -> StateT | None:
        """The row of a sequence, if it has one still."""
        found = self._rows.get(sequence)
        return None if found is None else found[1]

    def of(self, sequence: Hashable, in_use: Collection[Hashable]) -> StateT:
        """The row of a sequence; none of those `in_use` loses its own."""
        row = self._rows.pop(sequence, None)
        if row is None and len(self._rows) < self._num_rows:
            row = len(self._rows), self._make(len(self._rows))
        elif row is None:
            index, _ = self._rows.pop(next(other for other in self._rows if other not in in_use))
            row = index, self._make(index)
        self._rows[sequence] = row
        return row[1]
