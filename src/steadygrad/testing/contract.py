"""The contract that every detector keeps, whoever wrote it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence

import numpy as np

from steadygrad._check import check
from steadygrad.core.finding import Detector, Finding, Severity
from steadygrad.core.record import Record, record_of
from steadygrad.testing.case import Patient

NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
PAGE = ("looks at", "matters", "wrong", "try")


def check_detector(
    detector: Detector,
    *,
    sick: Sequence[Patient] = (),
    healthy: Sequence[Patient] = (),
    seeds: Sequence[int] = (0,),
) -> None:
    """Assert that a detector keeps the contract; raise AssertionError with the broken clause.

    It has a code, a kebab-case name, and a page; its thresholds have defaults; it survives an empty
    record; it changes nothing and says the same twice; it finds its `sick` patients; it says
    nothing above a note on `healthy` ones.
    """
    _check_identity(detector)
    _check_thresholds(detector)
    _run(detector, record_of([]))
    for patient in sick:
        for seed in seeds:
            found = _findings(detector, patient, seed)
            assert found, f"{detector.code} does not find {patient.name} at seed {seed}"
    for patient in healthy:
        for seed in seeds:
            loud = [f for f in _findings(detector, patient, seed) if f.severity > Severity.note]
            assert not loud, f"{detector.code} says of healthy {patient.name}: {loud[0].says}"


def _check_identity(detector: Detector) -> None:
    assert detector.code, "a detector has a code"
    assert NAME.fullmatch(detector.name), f"{detector.name!r} is not lower-case words with hyphens"
    page = detector.page.lower()
    missing = [part for part in PAGE if part not in page]
    assert not missing, f"the page of {detector.code} lacks what it {missing}"


def _check_thresholds(detector: Detector) -> None:
    _, *thresholds = inspect.signature(detector.find).parameters.values()
    for one in thresholds:
        keyword = one.kind is inspect.Parameter.KEYWORD_ONLY
        assert keyword, f"threshold {one.name} of {detector.code} is not keyword-only"
        given = one.default is not inspect.Parameter.empty
        assert given, f"threshold {one.name} of {detector.code} has no default"


def _findings(detector: Detector, patient: Patient, seed: int) -> list[Finding]:
    case = patient.build(seed)
    return _run(detector, check(case.model, **case.arguments()).record)


def _run(detector: Detector, record: Record) -> list[Finding]:
    """Run a detector twice as `diagnose` would; it may neither change the record nor its mind."""
    if detector.missing(record):
        return []
    before = record.values.copy()
    first, second = detector.run(record), detector.run(record)
    same = np.array_equal(before, record.values, equal_nan=True)
    assert same, f"{detector.code} changed the record"
    assert repr(first) == repr(second), f"{detector.code} says two things of one record"
    return first
