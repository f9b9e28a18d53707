"""Check every patient on several seeds: is it found, is the cause right, is the place right?"""

from __future__ import annotations

import time
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import steadygrad as sg
from bench.table import Row, markdown, publish
from steadygrad.core.finding import Finding
from steadygrad.core.report import Report
from steadygrad.testing import PATIENTS, Patient

SEEDS = (0, 1, 2, 3, 4)


@dataclass(frozen=True, slots=True)
class Answer:
    """What check said of one patient at one seed."""

    patient: Patient
    seed: int
    found: bool
    named: bool
    located: bool
    said: str
    seconds: float


def answer(patient: Patient, seed: int) -> Answer:
    """Check one patient; an exception counts as not found."""
    case = patient.build(seed)
    begin = time.perf_counter()
    try:
        report = sg.check(case.model, **case.arguments())
    except Exception as error:
        said = f"{type(error).__name__}: {error}"[:200]
        return Answer(patient, seed, False, False, False, said, time.perf_counter() - begin)
    seconds = time.perf_counter() - begin
    return Answer(
        patient,
        seed,
        patient.found(report),
        patient.named(report),
        patient.located(report),
        summary(report),
        seconds,
    )


def summary(report: Report) -> str:
    """Say what a report found in one line."""
    return "; ".join(map(in_short, report.findings)) or "nothing"


def in_short(finding: Finding) -> str:
    """Say code, severity, places and folded symptoms of a finding."""
    places = ",".join(finding.where[:3]) + ("..." if len(finding.where) > 3 else "")
    folded = f" <- {','.join(finding.symptoms)}" if finding.symptoms else ""
    return f"{finding.code}/{finding.severity.name} {places}{folded}"


def run(seeds: Sequence[int] = SEEDS) -> None:
    """Examine all patients; write patients.md."""
    warnings.simplefilter("ignore")
    answers = [answer(patient, seed) for patient in PATIENTS for seed in seeds]
    publish(
        "patients",
        "Sick patients: found, cause, place",
        [
            _totals(answers),
            "## By code\n\n" + _by_code(answers),
            "## Not as it should be\n\n" + _misses(answers),
            "## All, at the first seed\n\n" + _all(answers, seeds[0]),
        ],
    )


def _totals(answers: Sequence[Answer]) -> str:
    count = len(answers)
    rows: list[Row] = [
        ("found", _share(sum(a.found for a in answers), count), ">= 98 %"),
        ("cause right", _share(sum(a.named for a in answers), count), ">= 95 %"),
        ("place right", _share(sum(a.located for a in answers), count), ">= 90 %"),
        ("seconds per check", sum(a.seconds for a in answers) / count, ""),
    ]
    return markdown((f"of {count}", "reached", "asked"), rows)


def _by_code(answers: Sequence[Answer]) -> str:
    groups: dict[str, list[Answer]] = defaultdict(list)
    for one in answers:
        for code in one.patient.codes:
            groups[code].append(one)
    rows = [
        (
            code,
            len(group),
            sum(a.found for a in group),
            sum(a.named for a in group),
            sum(a.located for a in group),
        )
        for code, group in sorted(groups.items())
    ]
    return markdown(("code", "cases", "found", "cause right", "place right"), rows)


def _misses(answers: Sequence[Answer]) -> str:
    rows: dict[tuple[str, str, str, str], list[int]] = defaultdict(list)
    for a in answers:
        if a.found and a.named and a.located:
            continue
        what = "place" if a.named else "cause" if a.found else "missed"
        expected = f"{'|'.join(sorted(a.patient.codes))} at {'|'.join(a.patient.where)}"
        rows[a.patient.name, what, expected, a.said].append(a.seed)
    table = [(*key, ",".join(map(str, seeds))) for key, seeds in rows.items()]
    return markdown(("patient", "wrong", "expected", "said", "seeds"), table)


def _all(answers: Sequence[Answer], seed: int) -> str:
    rows = [
        (a.patient.name, "|".join(sorted(a.patient.codes)), a.said)
        for a in answers
        if a.seed == seed
    ]
    return markdown(("patient", "expected", "said"), rows)


def _share(part: int, whole: int) -> str:
    return f"{part} ({part / whole:.1%})"
