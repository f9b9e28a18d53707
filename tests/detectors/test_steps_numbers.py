"""Judge hand-made numbers over many steps: the first break, and the loss scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from steadygrad.core.finding import Finding, Severity
from steadygrad.core.record import Record
from steadygrad.detectors.steps.nonfinite import (
    nonfinite_backward,
    nonfinite_loss,
    nonfinite_update,
)
from steadygrad.detectors.steps.scale import loss_scale_collapse

Training = Callable[..., Record]


def broken(record: Record) -> list[Finding]:
    all_three = (nonfinite_update, nonfinite_loss, nonfinite_backward)
    return [one for detector in all_three for one in detector.run(record)]


def from_step(step: int, sites: int = 1, steps: int = 100, *, last: int = 10**9) -> Any:
    """Readings [steps, sites] that are infinite from a step on."""
    number = np.arange(1, steps + 1)
    bad = (number >= step) & (number <= last)
    return np.where(bad, np.inf, 1.0)[:, None] * np.ones(sites)


def test_finite_numbers_are_healthy(training: Training) -> None:
    assert not broken(training(100))


def test_a_loss_that_breaks_is_named_by_its_step(training: Training) -> None:
    (one,) = broken(training(100, loss=from_step(50), grad=from_step(50, 8)))
    assert (one.code, one.severity, one.steps) == ("G003", Severity.broken, (50, 50))


def test_a_gradient_that_breaks_alone_is_named_nearest_to_the_loss(training: Training) -> None:
    grad = from_step(50, 8)
    grad[:, 4:] = 1.0
    (one,) = broken(training(100, grad=grad))
    assert one.code == "G004"
    assert one.where[:2] == ("layers.1.weight", "layers.1.bias")


def test_weights_that_break_before_any_gradient_are_the_optimizers(training: Training) -> None:
    readings = {"weight": from_step(60, 8), "loss": from_step(60), "grad": from_step(60, 8)}
    (one,) = broken(training(100, **readings))
    assert one.code == "G005"


def test_weights_that_were_broken_before_the_watch_are_not_the_optimizers(
    training: Training,
) -> None:
    readings = {"weight": from_step(1, 8), "loss": from_step(1), "grad": from_step(1, 8)}
    (one,) = broken(training(100, **readings))
    assert one.code == "G005"
    assert "optimizer" not in one.says
    assert not one.try_next


def test_one_bad_step_that_heals_is_a_risk(training: Training) -> None:
    (one,) = broken(training(100, loss=from_step(50, last=50)))
    assert one.severity is Severity.risk


def test_skipped_steps_and_a_known_cause_are_left_alone(training: Training) -> None:
    skipped = np.isinf(from_step(50)).astype(float)
    assert not broken(training(100, grad=from_step(50, 8), skipped=skipped))
    assert not broken(training(100, loss=from_step(50), facts={"cause": [{"code": "G002"}]}))


# --- The loss scale -------------------------------------------------------------------------------


def scaled(training: Training, skips: list[int], start: float = 65536.0) -> list[Finding]:
    """Halve the scale at each skip and double it after every 2000 steps."""
    skipped = np.zeros((3000, 1))
    skipped[skips] = 1
    scale = start * 0.5 ** np.cumsum(skipped)[:, None]
    facts = {"scaler": {"growth_interval": 2000, "init_scale": start}}
    return loss_scale_collapse.run(training(3000, scale=scale, skipped=skipped, facts=facts))


def test_a_calibration_at_the_start_is_healthy(training: Training) -> None:
    assert not scaled(training, list(range(7)), start=2.0**24)


def test_a_skip_per_interval_is_healthy(training: Training) -> None:
    assert not scaled(training, [0, 1, 500, 2600])


def test_a_scale_that_is_halved_five_times_in_a_row_is_a_risk(training: Training) -> None:
    (one,) = scaled(training, [0, *range(500, 505)])
    assert one.severity is Severity.risk


def test_a_scale_below_one_is_broken(training: Training) -> None:
    (one,) = scaled(training, list(range(500, 520)))
    assert one.severity is Severity.broken


@pytest.mark.parametrize("skipped", [0.0, 1.0])
def test_without_a_scaler_nothing_is_said(training: Training, skipped: float) -> None:
    assert not loss_scale_collapse.run(training(100, skipped=skipped))
