"""A Report names causes; symptoms stand under them, and what could not look says so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from steadygrad.core.finding import Detector, Finding, Severity
from steadygrad.core.record import Record, Site, record_of
from steadygrad.core.report import Report, diagnose
from steadygrad.detectors import DETECTORS, WATCHING

RECORD = record_of([(Site("layers.0", "unit"), {"gain": 0.0})])
FAMILIES = {f"G{family}" for family in range(7)}


def says(code: str, *found: Finding, explains: tuple[str, ...] = ()) -> Detector:
    """Make a detector that always finds the same."""

    def find(record: Record) -> Iterator[Finding]:
        yield from found

    return Detector(code, f"illness-{code}", ("gain",), explains, find)


NOTE, RISK, BROKEN = (Finding(severity, "is ill", ("layers.0",)) for severity in Severity)


def codes(report: Report) -> list[str]:
    return [one.code for one in report.findings]


def test_no_finding_is_healthy() -> None:
    report = diagnose(RECORD, [says("G1")])
    assert report.verdict == "healthy"
    assert report.clear == ("G1",)
    assert report.worst is Severity.note


def test_a_note_is_healthy_and_kept() -> None:
    report = diagnose(RECORD, [says("G1", NOTE)])
    assert report.verdict == "healthy"
    assert codes(report) == ["G1"]
    assert report.clear == ()


def test_a_risk_is_a_finding() -> None:
    assert diagnose(RECORD, [says("G1", RISK)]).verdict == "findings"


def test_nothing_seen_is_not_health() -> None:
    blind = Detector("G1", "illness", ("unread",), (), says("G1", BROKEN).find)
    report = diagnose(RECORD, [blind])
    assert report.verdict == "blind"
    assert report.findings == ()
    assert [(one.code, one.why) for one in report.blind] == [("G1", "unread was not read")]


def test_a_probes_own_words_say_why_it_was_blind() -> None:
    facts = {"blind": {"flow": "the output is not finite"}}
    blind = Detector("G1", "illness", ("gain", "flow"), (), says("G1").find)
    report = diagnose(record_of([], {**facts}), [blind])
    assert report.blind[0].why == "gain was not read"
    report = diagnose(record_of([(Site("a", "unit"), {"gain": 0.0})], facts), [blind])
    assert report.blind[0].why == "the output is not finite"


def test_a_finding_is_stamped_with_code_and_name() -> None:
    found = diagnose(RECORD, [says("G1", RISK)]).findings[0]
    assert (found.code, found.name, found.because) == ("G1", "illness-G1", ("G1",))


def test_a_symptom_stands_under_its_cause() -> None:
    report = diagnose(RECORD, [says("G2", RISK), says("G1", RISK, explains=("G2",))])
    assert codes(report) == ["G1"]
    assert report.findings[0].symptoms == ("G2",)
    assert [(one.code, one.because) for one in report.folded] == [("G2", ("G1",))]


def test_a_symptoms_symptom_stands_under_the_first_cause() -> None:
    chain = [
        says("G1", RISK, explains=("G2",)),
        says("G2", RISK, explains=("G3",)),
        says("G3", RISK),
    ]
    report = diagnose(RECORD, chain)
    assert codes(report) == ["G1"]
    assert report.findings[0].symptoms == ("G2", "G3")
    assert {one.because for one in report.folded} == {("G1",)}


def test_a_cause_that_was_not_found_explains_nothing() -> None:
    report = diagnose(RECORD, [says("G1", explains=("G2",)), says("G2", RISK)])
    assert codes(report) == ["G2"]


def test_a_cause_is_as_severe_as_its_worst_symptom() -> None:
    report = diagnose(RECORD, [says("G1", NOTE, explains=("G2",)), says("G2", BROKEN)])
    assert codes(report) == ["G1"]
    assert report.findings[0].severity is Severity.broken
    assert report.verdict == "findings"


def test_what_is_only_possible_explains_nothing() -> None:
    possible = Finding(Severity.note, "may be ill", confidence="possible")
    report = diagnose(RECORD, [says("G1", possible, explains=("G2",)), says("G2", RISK)])
    assert codes(report) == ["G2", "G1"]
    assert report.findings[0].symptoms == ()


def test_roots_stand_by_severity_then_suspicion_then_magnitude() -> None:
    small, large = (Finding(Severity.risk, "is ill", magnitude=size) for size in (1.0, 3.0))
    detectors = [says("G3", NOTE), says("G1", small, large), says("G2", small), says("G4", BROKEN)]
    report = diagnose(RECORD, detectors)
    order = [(one.code, one.magnitude) for one in report.findings]
    assert order == [("G4", 0.0), ("G1", 3.0), ("G1", 1.0), ("G2", 1.0), ("G3", 0.0)]


def at(*where: str, severity: Severity = Severity.risk, line: str = "") -> Finding:
    return Finding(severity, "is ill", where, {"line": line} if line else {})


def test_one_illness_of_two_layers_are_two_roots() -> None:
    report = diagnose(RECORD, [says("G1", at("a"), at("b"))])
    assert codes(report) == ["G1", "G1"]
    assert all(one.symptoms == () for one in report.findings)


def test_what_is_said_twice_of_one_layer_is_one_root() -> None:
    note = at("a", "b", severity=Severity.note)
    report = diagnose(RECORD, [says("G1", at("a"), note, at("b", severity=Severity.note))])
    assert [(one.code, one.where) for one in report.findings] == [("G1", ("a", "b"))]
    assert [one.because for one in report.folded] == [("G1",), ("G1",)]
    assert report.findings[0].symptoms == ()


def test_two_lines_of_one_layer_and_two_faults_of_the_data_are_two_roots() -> None:
    lines = says("G1", at("a", line="x.py:1"), at("a", line="x.py:2"))
    assert codes(diagnose(RECORD, [lines, says("G2", at("data"), at("data"))])) == [
        *("G1", "G1"),
        *("G2", "G2"),
    ]


def test_a_report_as_text_names_verdict_target_and_roots() -> None:
    report = diagnose(RECORD, [says("G1", RISK)], target="train.py")
    assert str(report).splitlines() == ["findings: train.py", "G1 illness-G1: is ill"]
    assert str(diagnose(RECORD, [says("G1")])) == "healthy"


@pytest.mark.parametrize("detectors", [DETECTORS, WATCHING], ids=["check", "run"])
def test_explanations_have_no_cycle(detectors: tuple[Detector, ...]) -> None:
    explains: dict[str, set[str]] = {}
    for one in detectors:
        explains.setdefault(one.code, set()).update(one.explains)
    while explains:
        last = {code for code, symptoms in explains.items() if not symptoms & set(explains)}
        assert last, f"these explain each other: {sorted(explains)}"
        explains = {code: symptoms for code, symptoms in explains.items() if code not in last}


def test_a_detector_explains_codes_of_known_families_and_not_itself() -> None:
    for one in (*DETECTORS, *WATCHING):
        assert {code[:2] for code in one.explains} <= FAMILIES
        assert all(len(code) == 4 and code[1:].isdigit() for code in one.explains)
        assert one.code not in one.explains


def test_codes_and_names_are_unique() -> None:
    assert len({one.code for one in DETECTORS}) == len(DETECTORS)
    assert len({one.name for one in DETECTORS}) == len(DETECTORS)


def test_a_detector_that_fails_is_blind_and_silences_nobody() -> None:
    def fails(record: Record) -> Iterator[Finding]:
        raise ZeroDivisionError("ours")
        yield

    def finds(record: Record) -> Iterator[Finding]:
        yield Finding(Severity.risk, "it is ill")

    detectors = (Detector("G1", "one", (), (), fails), Detector("G2", "two", (), (), finds))

    report = diagnose(record_of([]), detectors)

    assert [one.code for one in report.findings] == ["G2"]
    assert [(one.code, one.why) for one in report.blind] == [
        ("G1", "it failed: ZeroDivisionError: ours")
    ]
