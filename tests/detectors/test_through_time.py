"""Judge hand-made slopes over time."""

from __future__ import annotations

import pytest

from steadygrad.core.finding import Finding, Severity
from steadygrad.core.record import Site, record_of
from steadygrad.detectors.through_time import exploding_through_time, vanishing_through_time


def found(
    per_step: float, steps: int = 100, travels: float = 1.0, kind: str = "LSTM"
) -> list[Finding]:
    row = {
        "time_factor": 10**per_step,
        "time_decades": per_step * (steps - 1),
        "time_horizon": abs(0.4343 / per_step) if per_step else float("inf"),
        "time_steps": float(steps),
        "time_travels": travels,
    }
    record = record_of([(Site("rnn", "time", 1, kind), row)], {"time": {}})
    return [*exploding_through_time.run(record), *vanishing_through_time.run(record)]


@pytest.mark.parametrize(
    ("per_step", "steps", "code", "severity"),
    [
        (-0.2, 200, "G107", Severity.risk),
        (-0.2, 50, "G107", Severity.note),
        (0.05, 100, "G106", Severity.risk),
        (0.15, 100, "G106", Severity.broken),
    ],
)
def test_a_steep_slope_is_found(per_step: float, steps: int, code: str, severity: Severity) -> None:
    (one,) = found(per_step, steps)
    assert (one.code, one.severity, one.where) == (code, severity, ("rnn",))


@pytest.mark.parametrize("per_step", [0.0, -0.02, 0.01, 0.02])
def test_a_level_slope_is_healthy(per_step: float) -> None:
    assert found(per_step) == []


def test_where_every_step_is_looked_at_nothing_must_travel() -> None:
    assert found(-0.2, travels=0.0) == []


def test_a_short_sequence_is_short_enough() -> None:
    assert found(-0.2, steps=28) == []


def test_each_cell_gets_the_remedy_of_its_kind() -> None:
    remedies = [found(-0.2, kind=kind)[0].try_next[0].remedy for kind in ("LSTM", "GRU", "RNN")]
    assert remedies == ["chrono-init", "read-all-steps", "orthogonal-recurrence"]


def test_nothing_recurrent_is_clear_rather_than_blind() -> None:
    record = record_of([], {"time": {"looked_at": []}})
    assert vanishing_through_time.missing(record) == ()
    assert vanishing_through_time.run(record) == []


@pytest.mark.parametrize(
    ("kind", "weight"), [("RNN", "weight_hh_l0"), ("RNNCell", "weight_hh"), ("Linear", "weight")]
)
def test_the_patch_names_the_weight_that_the_module_has(kind: str, weight: str) -> None:
    patches = [one.patch for one in found(0.15, kind=kind)[0].try_next]
    assert f"nn.init.orthogonal_(model.rnn.{weight})" in patches
