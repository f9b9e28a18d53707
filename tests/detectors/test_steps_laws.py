"""Laws for every training: no unit of the loss, no thinning of the rows moves a verdict."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steadygrad.core.finding import Detector
from steadygrad.core.record import Record
from steadygrad.core.report import diagnose
from steadygrad.detectors import WATCHING
from steadygrad.testing import check_detector

Training = Callable[..., Record]
STEP = np.arange(1, 1001)[:, None]
FAINT = np.repeat([1e-9, 1e-7, 1e-4, 0.1], 2)
ILL: dict[str, dict[str, Any]] = {
    "learning": {},
    "stuck": {},
    "vanishing": {"grad": FAINT},
    "dead": {"max": 0.0, "dead": 1.0},
    "crawling": {"update": 1e-8},
    "leaping": {"update": 4.0},
    "spiking": {"norm": np.where(STEP == 500, 300.0, np.exp(0.1 * np.sin(STEP)))},
    "exploding": {"norm": np.exp(STEP / 80), "loss": np.exp(STEP / 80), "facts": {}},
}
IN_UNITS_OF_THE_LOSS = ("loss", "norm", "grad", "max_norm", "norm_after", "grad_rms")


@pytest.fixture(scope="session")
def patient(training: Training, stuck: dict[str, Any]) -> Callable[[str], Record]:
    def build(name: str) -> Record:
        return training(1000, **({} if name == "learning" else stuck) | ILL[name])

    return build


def verdict(record: Record) -> list[tuple[str, int, tuple[str, ...]]]:
    report = diagnose(record, WATCHING)
    return [(one.code, int(one.severity), one.where) for one in (*report.findings, *report.folded)]


@pytest.mark.parametrize("name", ILL)
@given(decades=st.floats(-6, 6))
@settings(max_examples=10, deadline=None)
def test_the_unit_of_the_loss_moves_no_verdict(
    patient: Callable[[str], Record], name: str, decades: float
) -> None:
    record = patient(name)
    times = np.array([10**decades if m in IN_UNITS_OF_THE_LOSS else 1.0 for m in record.metrics])
    facts = dict(record.facts)
    if "constant" in facts:
        facts["constant"] = facts["constant"] | {"loss": facts["constant"]["loss"] * 10**decades}
    values = (record.values * times).astype(np.float32)
    scaled = Record(record.sites, record.metrics, record.steps, values, facts)
    assert verdict(scaled) == verdict(record)


@pytest.mark.parametrize("name", [name for name in ILL if name != "spiking"])
@given(kept=st.integers(200, 900))
@settings(max_examples=5, deadline=None)
def test_thinning_out_old_rows_moves_no_verdict(
    patient: Callable[[str], Record], name: str, kept: int
) -> None:
    record = patient(name)
    assert verdict(thinned(record, 1000 - kept)) == verdict(record)


def thinned(record: Record, first: int, *, many: int = 10) -> Record:
    """Let three rows, least, median, and most of each reading, stand for ten of the first ones."""
    steps, rows = [], []
    for begin in range(0, first - many + 1, many):
        part = record.values[begin : begin + many]
        with np.errstate(all="ignore"):
            known = np.isfinite(part).any(axis=0)
            filled = np.where(np.isfinite(part), part, np.nan)
            ordered = [function(filled, known) for function in (least, half, most)]
        steps += [int(record.steps[begin + place]) for place in (0, many // 2, many - 1)]
        rows += ordered
    begin = first - first % many
    steps += list(record.steps[begin:])
    values = np.concatenate([np.array(rows, dtype=np.float32), record.values[begin:]])
    return Record(record.sites, record.metrics, np.array(steps), values, record.facts)


def least(part: np.ndarray, known: np.ndarray) -> np.ndarray:
    return np.where(known, np.where(np.isnan(part), np.inf, part).min(axis=0), np.nan)


def most(part: np.ndarray, known: np.ndarray) -> np.ndarray:
    return np.where(known, np.where(np.isnan(part), -np.inf, part).max(axis=0), np.nan)


def half(part: np.ndarray, known: np.ndarray) -> np.ndarray:
    count = np.isfinite(part).sum(axis=0)
    ordered = np.sort(part, axis=0)
    middle = np.take_along_axis(ordered, np.maximum(count - 1, 0)[None] // 2, axis=0)[0]
    return np.where(known, middle, np.nan)


@pytest.mark.parametrize("detector", WATCHING, ids=lambda one: f"{one.code}-{one.name}")
def test_a_detector_keeps_the_contract(detector: Detector) -> None:
    check_detector(detector)


@pytest.mark.parametrize("name", ILL)
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 20, 100])
def test_any_length_is_judged(patient: Callable[[str], Record], name: str, steps: int) -> None:
    whole = patient(name)
    short = Record(whole.sites, whole.metrics, whole.steps[:steps], whole.values[:steps], {})
    for detector in WATCHING:
        if not detector.missing(short):
            detector.run(short)


@given(seed=st.integers(0, 2**32 - 1), share=st.floats(0, 1), broken=st.floats(0, 0.05))
@settings(max_examples=30, deadline=None)
def test_whatever_was_not_read_or_is_broken_no_detector_fails(
    patient: Callable[[str], Record], seed: int, share: float, broken: float
) -> None:
    draw = np.random.default_rng(seed)
    whole = patient(str(draw.choice(list(ILL))))
    values = whole.values[: draw.integers(1, 200)].copy()
    values[draw.random(values.shape) < broken] = np.inf
    values[draw.random(values.shape) < share] = np.nan
    values[..., draw.random(len(whole.metrics)) < 0.2] = np.nan
    record = Record(whole.sites, whole.metrics, whole.steps[: len(values)], values, whole.facts)
    diagnose(record, WATCHING)
