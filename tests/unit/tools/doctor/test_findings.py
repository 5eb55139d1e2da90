from __future__ import annotations

from functools import partial

from nxdi.tools.doctor.findings import Finding, Section, Verdict, run_checks


def check_a_thing() -> Finding:
    return Finding("thing", Verdict.OK, "fine")


def check_that_breaks(word: str = "boom") -> Finding:
    raise RuntimeError(word)


def test_a_check_that_raises_is_a_finding_and_the_others_still_run() -> None:
    section = run_checks("title", [check_that_breaks, check_a_thing])
    assert [finding.verdict for finding in section.findings] == [Verdict.FAILED, Verdict.OK]
    assert section.findings[0].name == "that breaks"
    assert section.findings[0].found == "RuntimeError: boom"


def test_the_name_of_a_check_with_arguments() -> None:
    (finding,) = run_checks("title", [partial(check_that_breaks, "bang")]).findings
    assert (finding.name, finding.found) == ("that breaks bang", "RuntimeError: bang")


def test_only_a_failure_is_unhealthy() -> None:
    for verdict in Verdict:
        section = Section("title", (Finding("x", verdict, ""),))
        assert section.is_healthy == (verdict is not Verdict.FAILED)
