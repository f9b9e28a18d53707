"""Judge hand-made trials: the lr is named only where a smaller one does better."""

from __future__ import annotations

import math
from typing import Any

import pytest

from steadygrad.core.finding import Finding, Severity
from steadygrad.core.record import record_of
from steadygrad.detectors.decay import decay_too_strong
from steadygrad.detectors.step import (
    lr_too_high,
    lr_too_low,
    missing_warmup,
    nonfinite_update,
    swallowed_update,
)

UPDATE: dict[str, Any] = {
    "loss_before": 2.3,
    "loss_after": 2.2,
    "relative_change": 0.1,
    "grads_finite": True,
    "nonfinite": [],
    "half": [],
    "eps": 1e-8,
    "optimizer": "SGD",
    "lr": 0.1,
    "momentum": 0.0,
    "attends": False,
    "warming_up": False,
    "moved": 1.0,
    "largest_ratio": 1e-3,
    "first_fall": 0.1,
    "decay": 0.0,
}
ALL = (
    lr_too_high,
    missing_warmup,
    lr_too_low,
    swallowed_update,
    nonfinite_update,
    decay_too_strong,
)
FALLS, STAYS = [2.3, 2.0, 1.5, 1.0], [2.3, 9.0, 2.3, 2.3]


def found(
    losses: dict[str, list[float]] | None = None,
    sharpness: dict[str, float] | None = None,
    entropy: float | None = None,
    value: float = 2.3,
    **changes: Any,
) -> list[Finding]:
    trial = {"steps": 3, "losses": losses or {"lr": FALLS}}
    facts = {"update": {**UPDATE, **changes}, "trial": trial, "sharpness": sharpness}
    facts["losses"] = [{"labels_entropy": entropy, "constant_loss": 2.3, "value": value}]
    return [one for detector in ALL for one in detector.run(record_of([], facts))]


def codes(*given: Any, **changes: Any) -> list[str]:
    return [one.code for one in found(*given, **changes)]


def test_a_falling_loss_needs_no_word() -> None:
    assert codes() == []


@pytest.mark.parametrize("mine", [STAYS, [2.3, 50.0, 60.0, 70.0]])
def test_a_lower_lr_that_falls_convicts_the_lr(mine: list[float]) -> None:
    (one,) = found({"lr": mine, "lr/10": FALLS, "lr/100": [2.3, 2.2, 2.1, 2.0]})
    assert (one.code, one.severity, one.where) == ("G401", Severity.risk, ("lr",))
    assert "0.01" in one.says


BREAKS = [2.3, 9.0, math.nan]


def test_an_lr_that_makes_the_loss_nan_where_a_lower_one_falls_is_broken() -> None:
    (one,) = found({"lr": BREAKS, "lr/10": FALLS, "lr/100": FALLS})
    assert (one.code, one.severity) == ("G401", Severity.broken)


def test_a_loss_that_halved_before_it_broke_is_a_risk() -> None:
    (one,) = found({"lr": [2.3, 1.0, math.inf], "lr/10": FALLS, "lr/100": FALLS})
    assert (one.code, one.severity) == ("G401", Severity.risk)


@pytest.mark.parametrize("script", [{"clipped": True}, {"loss_scale": 65536.0}])
def test_what_stands_before_the_step_may_stop_a_nan(script: dict[str, Any]) -> None:
    trial = {"steps": 3, "losses": {"lr": BREAKS, "lr/10": FALLS}}
    facts = {"update": UPDATE, "trial": trial}
    (one,) = lr_too_high.run(record_of([], {**facts, "script": script}))
    assert one.severity < Severity.broken


def test_a_slow_rise_that_a_lower_lr_hardly_betters_is_a_note() -> None:
    drifts = {"lr": [1.47, 1.5, 1.6, 1.7], "lr/10": [1.47, 1.45, 1.42, 1.39]}
    (one,) = found(drifts)
    assert (one.code, one.severity) == ("G401", Severity.note)
    (one,) = found({**drifts, "lr/10": [1.47, 1.2, 0.9, 0.7]})
    assert one.severity is Severity.risk


def test_where_no_lower_lr_falls_the_lr_is_not_blamed() -> None:
    stuck = [2.3, 2.3, 2.3, 2.3]
    assert codes({"lr": STAYS, "lr/10": stuck, "lr/100": stuck}) == []


def test_an_lr_that_does_as_well_as_a_lower_one_is_not_blamed() -> None:
    assert codes({"lr": [2.3, 9.0, 1.3, 1.2], "lr/10": FALLS, "lr/100": FALLS}) == []


def test_a_loss_that_ends_at_a_constant_prediction_has_learned_nothing() -> None:
    arms = {"lr": [2.6, 2.1, 2.0, 2.0], "lr/10": [2.6, 1.0, 0.5, 0.2]}
    assert codes(arms) == []
    assert codes(arms, entropy=2.05) == ["G401"]
    assert codes({**arms, "lr/10": [2.6, 2.2, 2.1, 2.05]}, entropy=2.05) == []


def test_a_batch_learned_by_heart_that_leaps_is_a_note() -> None:
    mine = [2.3, 1.5, 0.2, 9.0, 7.0, 5.0, 5.0, 5.0]
    (one,) = found({"lr": mine, "lr/10": FALLS, "lr/100": FALLS})
    assert (one.code, one.severity) == ("G401", Severity.note)


def test_an_lr_above_the_edge_is_a_note_while_the_loss_falls() -> None:
    (one,) = found(None, {"lambda_max": 30.0, "limit": 0.066, "lr": 0.1})
    assert (one.code, one.severity) == ("G401", Severity.note)


def test_negative_losses_are_compared_as_well() -> None:
    mine, lower = [-1.0, 5.0, 6.0, 7.0], [-1.0, -1.5, -2.0, -3.0]
    assert codes({"lr": mine, "lr/10": lower, "lr/100": lower}) == ["G401"]


def test_adam_that_a_ramp_helps_wants_a_warm_up() -> None:
    losses = {"lr": STAYS, "lr/10": FALLS, "lr/100": FALLS, "warm-up": FALLS}
    assert codes(losses, optimizer="AdamW", relative_change=2.0) == ["G403"]
    assert codes(losses, optimizer="SGD", relative_change=2.0) == ["G401"]
    assert codes(losses, optimizer="AdamW", relative_change=0.2) == ["G401"]


def test_attention_that_stands_still_likely_wants_a_warm_up() -> None:
    stands = [2.3, 2.4, 2.3, 2.3]
    losses = {"lr": stands, "lr/10": FALLS, "lr/100": FALLS, "warm-up": stands}
    (one,) = found(losses, optimizer="Adam", relative_change=2.0, attends=True)
    assert (one.code, one.confidence) == ("G403", "likely")


def test_an_lr_too_low_is_convicted_by_a_higher_one() -> None:
    losses = {"lr": [2.3, 2.3, 2.3, 2.3], "lr*1e+07": FALLS}
    assert codes(losses, largest_ratio=1e-10, lr=1e-9) == ["G402"]
    assert codes({"lr": [2.3, 2.3, 2.3, 2.3]}, largest_ratio=1e-10) == []
    assert codes(losses, largest_ratio=1e-4) == []


SLOW = {"lr": [2.3, 2.3, 2.3, 2.3], "lr*1e+04": FALLS}


def test_a_crawl_is_judged_by_what_it_takes_off_the_loss() -> None:
    assert codes(SLOW, largest_ratio=1e-6, first_fall=1e-6) == ["G402"]
    assert codes(SLOW, largest_ratio=1e-6, first_fall=1e-3) == []  # many weights move a little
    assert codes(SLOW, largest_ratio=1e-6, first_fall=1e-6, momentum=0.99) == []
    assert codes(SLOW, largest_ratio=1e-6, first_fall=1e-6, value=0.1) == []  # it has learned
    slow = {**SLOW, "lr*1e+04": [2.3, 2.29, 2.28, 2.27]}
    assert codes(slow, largest_ratio=1e-6, first_fall=1e-6) == []


def test_a_decay_is_convicted_by_the_trial_without_it() -> None:
    stands = [2.3, 1.6, 1.6, 1.6]
    (one,) = found({"lr": stands, "no-decay": [2.3, 1.0, 0.5, 0.1]}, decay=0.5)
    assert (one.code, one.severity, one.where) == ("G410", Severity.broken, ("optimizer",))


@pytest.mark.parametrize(
    "losses",
    [
        {"lr": [2.3, 2.0, 1.9, 1.6], "no-decay": [2.3, 1.0, 0.5, 0.1]},  # falls still
        {"lr": [2.3, 2.2, 2.2, 2.2], "no-decay": [2.3, 2.2, 2.2, 2.2]},  # no better without
        {"lr": [2.3, 1.0, 0.9, 0.9], "no-decay": [2.3, 1.0, 0.5, 0.1]},  # falls by half of that
        {"lr": [2.3, 2.2, 2.2, 2.2]},
    ],
)
def test_a_decay_that_the_loss_bears_is_left_alone(losses: dict[str, list[float]]) -> None:
    assert codes(losses, decay=0.1) == []


@pytest.mark.parametrize(
    ("moved", "severity"), [(0.01, Severity.broken), (0.3, Severity.risk), (0.8, None)]
)
def test_half_precision_swallows_small_steps(moved: float, severity: Severity | None) -> None:
    given = found(moved=moved, half=["torch.bfloat16"])
    assert [one.severity for one in given] == ([] if severity is None else [severity])


def test_weights_that_move_after_all_are_not_swallowed() -> None:
    assert codes(moved=0.01, moved_later=0.9, half=["torch.bfloat16"]) == []
    assert codes(moved=0.01, warming_up=True, half=["torch.bfloat16"]) == []
    assert codes(moved=0.01) == []


def test_a_step_that_breaks_weights_is_broken_unless_the_gradient_was() -> None:
    (one,) = found(nonfinite=["a.weight"], half=["torch.float16"], moved=math.nan)
    assert (one.code, one.severity) == ("G005", Severity.broken)
    assert "eps" in one.says
    assert codes(nonfinite=["a.weight"], grads_finite=False) == []
