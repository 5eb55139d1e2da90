"""The form of a finding, and how a check that fails unexpectedly becomes one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum


class Verdict(str, Enum):
    """How good a finding is."""

    OK = "ok"
    NOTE = "note"  # a fact that is neither good nor bad
    WARNING = "warning"  # nxdi works, with less speed or fewer features
    FAILED = "failed"  # nxdi does not work, or gives wrong results


@dataclass(frozen=True)
class Finding:
    """One thing looked at: what was found, and what to do about it if it is not well."""

    name: str
    verdict: Verdict
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Section:
    """Findings that belong together."""

    title: str
    findings: tuple[Finding, ...]

    @property
    def is_healthy(self) -> bool:
        return all(finding.verdict is not Verdict.FAILED for finding in self.findings)


Check = Callable[[], Finding]


def run_checks(title: str, checks: Iterable[Check]) -> Section:
    """A section of what the checks find; whatever one raises is a finding, too."""
    return Section(title, tuple(_guarded(check) for check in checks))


def _guarded(check: Check) -> Finding:
    try:
        return check()
    except Exception as error:  # an examination reports whatever goes wrong, and goes on
        call = check if isinstance(check, functools.partial) else functools.partial(check)
        name = getattr(call.func, "__name__", "check").removeprefix("check_").replace("_", " ")
        named = " ".join([name, *map(str, call.args)])
        return Finding(named, Verdict.FAILED, f"{type(error).__name__}: {error}")
