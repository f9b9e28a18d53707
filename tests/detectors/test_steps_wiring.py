"""Judge hand-made wirings of many steps: the four sets, calls in the wrong order, hosts, ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from steadygrad.core.finding import Detector, Finding, Severity
from steadygrad.core.record import Record
from steadygrad.detectors.steps.hosts import diverged_ranks, hidden_nan, ineffective_hook
from steadygrad.detectors.steps.order import misplaced_clip, stale_gradient
from steadygrad.detectors.steps.wiring import no_gradient, not_in_optimizer

Training = Callable[..., Record]
NONE: dict[str, Any] = {
    "steps": 1000,
    "frozen": [],
    "outside": [],
    "no_gradient": [],
    "zero": [],
    "unmoved": [],
    "expected_zero": [],
    "model_parameters": 8,
}
ALL = [f"layers.{i}.{kind}" for i in range(4) for kind in ("weight", "bias")]


def found(
    training: Training, detector: Detector, edits: dict[str, Any] | None = None, **sets: Any
) -> list[Finding]:
    edits = {**(edits or {})}
    facts = {**edits.pop("facts", {}), "wiring": NONE | sets}
    return detector.run(training(1000, facts=facts, **edits))


def severities(findings: list[Finding]) -> list[Severity]:
    return [one.severity for one in findings]


@pytest.mark.parametrize("detector", [no_gradient, not_in_optimizer])
def test_a_network_that_is_wired_well_is_healthy(training: Training, detector: Detector) -> None:
    assert not found(training, detector)


def test_nothing_is_judged_before_the_second_step(training: Training) -> None:
    assert not found(training, no_gradient, steps=1, no_gradient=ALL, zero=ALL)
    assert not found(training, not_in_optimizer, steps=1, outside=["layers.9.weight"])


def test_parameters_that_never_got_a_gradient_are_broken_when_they_are_all(
    training: Training,
) -> None:
    assert severities(found(training, no_gradient, no_gradient=ALL)) == [Severity.broken]


def test_first_layers_that_ran_without_a_gradient_are_cut(training: Training) -> None:
    (one,) = found(training, no_gradient, no_gradient=ALL[:4])
    assert one.severity is Severity.risk
    assert one.where == ("layers.0", "layers.1")


def test_a_last_layer_without_a_gradient_is_unused(training: Training) -> None:
    assert severities(found(training, no_gradient, no_gradient=ALL[-2:])) == [Severity.note]


def test_what_is_frozen_is_left_out(training: Training) -> None:
    assert not found(training, no_gradient, no_gradient=ALL[:2], frozen=ALL[:2])
    assert not found(training, no_gradient, zero=ALL[:1], frozen=ALL[:1])


def test_zero_gradients_are_ill_where_the_loss_stands(
    training: Training, stuck: dict[str, Any]
) -> None:
    assert severities(found(training, no_gradient, stuck, zero=ALL)) == [Severity.broken]
    assert severities(found(training, no_gradient, stuck, zero=ALL[:1])) == [Severity.risk]
    assert severities(found(training, no_gradient, zero=ALL[:1])) == [Severity.note]
    assert not found(training, no_gradient, stuck, zero=ALL[1:2]), "a bias"


def test_weights_that_never_move_are_a_risk_unless_the_lr_is_zero(training: Training) -> None:
    assert severities(found(training, no_gradient, unmoved=ALL)) == [Severity.risk]
    assert not found(training, no_gradient, {"lr": 0.0}, unmoved=ALL)
    assert not found(training, no_gradient, {"skipped": 1.0}, unmoved=ALL)


def test_a_frozen_network_learns_nothing(training: Training) -> None:
    facts = {"wiring": NONE | {"frozen": ALL}}
    assert severities(no_gradient.run(training(20, layers=0, facts=facts))) == [Severity.broken]
    assert not found(training, no_gradient, frozen=ALL[:4])


def test_a_layer_left_out_behind_stepped_ones_is_a_risk(training: Training) -> None:
    (one,) = found(training, not_in_optimizer, outside=["acts.2.weight"])
    assert (one.severity, one.where) == (Severity.risk, ("acts.2",))
    assert severities(found(training, not_in_optimizer, outside=["layers.1.scale"])) == [
        Severity.risk
    ]


def test_a_trunk_left_out_is_a_note(training: Training) -> None:
    trunk = [f"trunk.{i}.weight" for i in range(6)]
    assert severities(found(training, not_in_optimizer, outside=trunk)) == [Severity.note]


# --- Calls in the wrong order ---------------------------------------------------------------------


def stale(
    training: Training, stale: int, steps: int = 1000, edits: dict[str, Any] | None = None
) -> list[Finding]:
    edits = {**(edits or {})}
    facts = {"stale": {"steps": steps, "stale": stale, "line": ["train.py", 7]}}
    return stale_gradient.run(training(1000, facts=edits.pop("facts", {}) | facts, **edits))


def test_gradients_that_are_never_zeroed(training: Training, stuck: dict[str, Any]) -> None:
    (risk,), (broken,) = stale(training, 999), stale(training, 999, edits=stuck)
    assert (risk.severity, broken.severity) == (Severity.risk, Severity.broken)
    assert "train.py:7" in risk.says


def test_gradients_that_are_zeroed_are_healthy(training: Training) -> None:
    assert not stale(training, 0)
    assert not stale(training, 1, steps=1)


def test_a_few_stale_steps_are_a_note(training: Training) -> None:
    assert severities(stale(training, 3)) == [Severity.note]


@pytest.mark.parametrize("kind", ["after_step", "before_backward", "before_unscale"])
def test_a_clip_that_cannot_act_is_a_risk(training: Training, kind: str) -> None:
    facts = {"steps": 100, "line": ["train.py", 9], kind: 100}
    (one,) = misplaced_clip.run(training(100, facts={"clip_order": facts}))
    assert one.severity is Severity.risk
    assert "train.py:9" in one.says


def test_a_clip_between_backward_and_step_is_healthy(training: Training) -> None:
    facts = {"after_step": 0, "before_backward": 1, "before_unscale": 0, "steps": 100, "line": []}
    assert not misplaced_clip.run(training(100, facts={"clip_order": facts}))


# --- Hosts and ranks ------------------------------------------------------------------------------


def test_a_nan_that_the_log_hides_is_a_risk(training: Training) -> None:
    facts = {"host": "transformers", "steps": [7, 9], "setting": "logging_nan_inf_filter"}
    (one,) = hidden_nan.run(training(20, facts={"hidden_nan": facts}))
    assert (one.severity, one.steps) == (Severity.risk, (7, 9))
    assert not hidden_nan.run(training(20, facts={"hidden_nan": facts | {"steps": []}}))


def test_a_hook_after_compiling_is_a_risk(training: Training) -> None:
    (one,) = ineffective_hook.run(training(20, facts={"ineffective_hooks": ["layers.0"]}))
    assert one.where == ("layers.0",)
    assert not ineffective_hook.run(training(20, facts={"ineffective_hooks": []}))


def test_ranks_that_differ_are_broken(training: Training) -> None:
    rows = [{"step": step, "name": "layers.0.weight", "spread": 0.1 * step} for step in (9, 4)]
    (one,) = diverged_ranks.run(training(20, facts={"ranks": {"world": 2, "diverged": rows}}))
    assert (one.severity, one.steps) == (Severity.broken, (4, 4))
    assert not diverged_ranks.run(training(20, facts={"ranks": {"world": 2, "diverged": []}}))
