"""A progress bar with the time left, for work of seconds or more; silent where nobody watches."""

from __future__ import annotations

from types import TracebackType

from tqdm import tqdm


class Progress:
    """`with Progress("compile") as bar: bar.report(done, total, what)`.

    show: True or False; default: only on a terminal.
    """

    def __init__(self, title: str, show: bool | None = None) -> None:
        # tqdm's None means: only on a terminal.
        self._bar = tqdm(desc=title, unit="graph", disable=None if show is None else not show)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def report(self, done: int, total: int, what: str) -> None:
        """`done` of `total` steps are finished; `what` is being worked on."""
        self._bar.total = total
        self._bar.set_postfix_str(what, refresh=False)
        self._bar.update(done - self._bar.n)
        self._bar.refresh()
