"""Judge hand-made trainings: activations, gradients, logits, sizes of steps; sick and healthy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from steadygrad.core.finding import Confidence, Finding, Severity
from steadygrad.core.record import Record, Site
from steadygrad.core.report import Report, diagnose
from steadygrad.detectors import WATCHING
from steadygrad.detectors.steps.activations import dead_relu, saturated_activation
from steadygrad.detectors.steps.flow import exploding_gradient, vanishing_gradient
from steadygrad.detectors.steps.logits import exploding_logits
from steadygrad.detectors.steps.spikes import gradient_spike
from steadygrad.detectors.steps.stuck import stuck_loss
from steadygrad.detectors.steps.updates import large_update, lr_too_low, swallowed_update

Training = Callable[..., Record]
Stuck = dict[str, Any]
STEP = np.arange(1, 1001)[:, None]


def is_found(findings: list[Finding]) -> tuple[Severity, Confidence]:
    (one,) = findings
    return one.severity, one.confidence


def root(report: Report) -> str:
    return report.findings[0].code


def test_a_training_that_learns_is_healthy(training: Training) -> None:
    report = diagnose(training(1000), WATCHING)
    assert not report.findings
    assert report.verdict == "healthy"


def test_a_short_training_is_healthy(training: Training) -> None:
    assert not diagnose(training(3), WATCHING).findings


# --- Activations ----------------------------------------------------------------------------------


def dead(place: int) -> dict[str, Any]:
    """Readings [outputs] of which one activation is wholly dead."""
    largest, share = np.full(7, 3.0), np.full(7, 0.1)
    largest[place], share[place] = 0.0, 1.0
    return {"max": largest, "dead": share}


def test_a_dead_layer_is_broken_and_the_root(training: Training, stuck: Stuck) -> None:
    report = diagnose(training(1000, **dead(3), **stuck), WATCHING)
    assert root(report) == "G301"
    assert report.findings[0].where == ("acts.1",)
    assert "G411" in report.findings[0].symptoms


def test_units_dead_at_a_deep_start_are_healthy(training: Training, stuck: Stuck) -> None:
    assert not dead_relu.run(training(1000, dead=0.52, **stuck))


def test_a_dead_layer_beside_which_the_network_learns_is_a_note(training: Training) -> None:
    assert is_found(dead_relu.run(training(1000, **dead(3))))[0] is Severity.note


def test_zeros_of_zero_weights_are_not_dead_units(training: Training, stuck: Stuck) -> None:
    assert not dead_relu.run(training(1000, **dead(3), weight=0.0, **stuck))


def test_saturation_counts_where_the_loss_stands(training: Training, stuck: Stuck) -> None:
    sick = training(1000, act="Tanh", saturated=0.95, **stuck)
    assert is_found(saturated_activation.run(sick)) == (Severity.risk, "likely")
    assert not saturated_activation.run(training(1000, act="Tanh", saturated=0.95))
    assert not saturated_activation.run(training(1000, act="Tanh", saturated=0.5, **stuck))
    assert not saturated_activation.run(training(1000, act="ReLU", saturated=0.95, **stuck))


# --- Gradients ------------------------------------------------------------------------------------

FAINT = np.repeat([1e-9, 1e-7, 1e-4, 0.1], 2)


def test_faint_first_layers_of_a_stuck_network_vanish(training: Training, stuck: Stuck) -> None:
    report = diagnose(training(1000, grad=FAINT, **stuck), WATCHING)
    assert root(report) == "G102"
    assert report.findings[0].where == ("layers.0", "layers.1")
    assert report.findings[0].symptoms == ("G411",)


def test_faint_first_layers_of_a_network_that_learns_are_healthy(training: Training) -> None:
    assert not vanishing_gradient.run(training(1000, grad=FAINT))


def test_where_no_constant_is_known_vanishing_is_only_possible(
    training: Training, stuck: Stuck
) -> None:
    sick = training(1000, grad=FAINT, loss=stuck["loss"])
    assert is_found(vanishing_gradient.run(sick)) == (Severity.note, "possible")


def test_level_gradients_of_a_stuck_network_do_not_vanish(training: Training, stuck: Stuck) -> None:
    assert not vanishing_gradient.run(training(1000, **stuck))


def test_a_norm_and_a_loss_that_grow_by_decades_explode(training: Training) -> None:
    growing = np.exp(STEP[:60] / 5)
    report = diagnose(training(60, norm=growing, loss=growing), WATCHING)
    assert root(report) == "G101"
    assert report.findings[0].severity is Severity.broken


def test_a_norm_that_grows_while_the_loss_falls_is_healthy(training: Training) -> None:
    assert not exploding_gradient.run(training(60, norm=np.exp(STEP[:60] / 5)))


def test_a_loss_that_rises_while_the_norm_stays_is_healthy(training: Training) -> None:
    assert not exploding_gradient.run(training(60, loss=np.exp(STEP[:60] / 5)))


def spike(at: int, size: float) -> np.ndarray:
    noise = np.exp(0.1 * np.random.default_rng(4).normal(size=(1000, 1)))
    return np.where(at == STEP, size, noise)


def test_a_spike_from_which_the_loss_recovers_is_a_note(training: Training) -> None:
    sick = training(1000, norm=spike(500, 200.0))
    assert is_found(gradient_spike.run(sick)) == (Severity.note, "possible")


def test_a_spike_after_which_the_loss_stays_high_is_a_risk(
    training: Training, stuck: Stuck
) -> None:
    falls = 0.1 + 2.3 * np.exp(-STEP / 200)
    loss = np.where(STEP > 500, stuck["loss"], falls)
    report = diagnose(training(1000, norm=spike(500, 200.0), **stuck | {"loss": loss}), WATCHING)
    assert root(report) == "G108"
    assert report.findings[0].steps == (500, 500)


def test_a_threefold_gradient_is_no_spike(training: Training) -> None:
    assert not gradient_spike.run(training(1000, norm=spike(500, 3.0)))


# --- Logits ---------------------------------------------------------------------------------------


def attending(training: Training, logit: Any, names: str = "qkvo", grows: float = 1.0) -> Record:
    """A training whose four weights are those of an attention; queries and keys grow."""
    made = training(1000, act="attention", logit=logit, weight=_growing(grows))
    named = {
        f"layers.{i}.weight": f"attn.{name}_proj.weight" for i, name in enumerate(names)
    }  # each layer stands for one projection
    sites = tuple(
        Site(named.get(one.name, one.name), one.role, one.depth, one.kind, one.fan_in, one.shape)
        for one in made.sites
    )
    return Record(sites, made.metrics, made.steps, made.values, made.facts)


def _growing(times: float) -> np.ndarray:
    size = np.full((1000, 8), 8.0)
    size[:, :4] *= times ** (STEP / 1000)
    return size


def test_logits_that_grow_with_queries_and_keys_are_a_risk(training: Training) -> None:
    sick = attending(training, 5.0 * np.exp(STEP / 200), grows=4.0)
    assert is_found(exploding_logits.run(sick)) == (Severity.risk, "likely")


def test_large_logits_of_a_network_that_learns_are_a_note(training: Training) -> None:
    sharp = attending(training, 5.0 * np.exp(STEP / 200))
    assert is_found(exploding_logits.run(sharp)) == (Severity.note, "possible")


def test_logits_that_are_moderate_or_do_not_grow_are_healthy(training: Training) -> None:
    assert not exploding_logits.run(attending(training, 5.0 * np.exp(STEP / 500), grows=4.0))
    assert not exploding_logits.run(attending(training, 300.0, grows=4.0))


# --- Steps ----------------------------------------------------------------------------------------


def test_steps_that_redraw_the_weights_are_a_risk(training: Training, stuck: Stuck) -> None:
    report = diagnose(training(1000, update=4.0, **stuck), WATCHING)
    assert root(report) == "G412"
    assert report.findings[0].symptoms == ("G411",)


def test_one_step_larger_than_the_weights_is_enough(training: Training, stuck: Stuck) -> None:
    update = np.where(STEP == 1, 80.0, 8e-3)
    assert is_found(large_update.run(training(1000, update=update, **stuck)))[0] is Severity.risk


def test_large_steps_of_a_network_that_learns_are_healthy(training: Training) -> None:
    assert not large_update.run(training(1000, update=4.0))


def test_weights_that_started_at_zero_have_no_size_yet(training: Training, stuck: Stuck) -> None:
    weight = np.where(STEP == 1, 0.0, 1e-3)
    assert not large_update.run(training(1000, weight=weight, update=1e-3, **stuck))


def test_a_crawl_at_a_constant_prediction_is_a_risk(training: Training, stuck: Stuck) -> None:
    report = diagnose(training(1000, update=1e-8, **stuck), WATCHING)
    assert root(report) == "G402"
    assert report.findings[0].symptoms == ("G411",)


def test_a_crawl_of_a_network_that_may_have_converged_is_possible(
    training: Training, stuck: Stuck
) -> None:
    crawls = training(1000, update=1e-8, loss=stuck["loss"])
    assert is_found(lr_too_low.run(crawls)) == (Severity.note, "possible")


def test_small_steps_are_healthy_in_a_warm_up_and_below_a_constant(
    training: Training, stuck: Stuck
) -> None:
    rising = np.linspace(0, 1e-6, 1000)[:, None]
    assert not lr_too_low.run(training(1000, update=1e-8, lr=rising, **stuck))
    learned = stuck | {"loss": stuck["loss"] - 2.0}
    assert not lr_too_low.run(training(1000, update=1e-8, **learned))


def test_a_gradient_that_vanished_is_not_laid_to_the_lr(training: Training, stuck: Stuck) -> None:
    assert not lr_too_low.run(training(1000, update=1e-8, grad=1e-9, **stuck))


def halved(training: Training, dtype: str = "torch.bfloat16", **edits: Any) -> list[Finding]:
    facts = {**edits.pop("facts", {}), "optimizers": [{"name": "optimizer", "dtypes": [dtype]}]}
    return swallowed_update.run(training(1000, facts=facts, **edits))


def test_steps_that_half_precision_swallows_are_broken(training: Training, stuck: Stuck) -> None:
    assert is_found(halved(training, moved=0.01, **stuck))[0] is Severity.broken


def test_stochastic_rounding_moves_few_weights_and_learns(training: Training) -> None:
    assert is_found(halved(training, moved=0.05))[0] is Severity.note


def test_steps_that_move_most_weights_or_are_float32_are_healthy(
    training: Training, stuck: Stuck
) -> None:
    assert not halved(training, moved=0.6, **stuck)
    assert not halved(training, "torch.float32", moved=0.01, **stuck)


# --- A loss that stands ---------------------------------------------------------------------------


def test_a_loss_at_a_constant_prediction_is_stuck(training: Training, stuck: Stuck) -> None:
    report = diagnose(training(1000, **stuck), WATCHING)
    assert [one.code for one in report.findings] == ["G411"]
    assert report.findings[0].severity is Severity.risk
    assert "not known" in report.findings[0].says


@pytest.mark.parametrize("steps", [10, 100, 250])
def test_a_short_stand_is_not_stuck(training: Training, stuck: Stuck, steps: int) -> None:
    assert not stuck_loss.run(training(steps, **stuck | {"loss": stuck["loss"][:steps]}))


def test_a_stand_of_some_hundred_steps_is_a_note(training: Training, stuck: Stuck) -> None:
    stands = training(500, **stuck | {"loss": stuck["loss"][:500]})
    assert is_found(stuck_loss.run(stands)) == (Severity.note, "possible")


def test_a_gradient_that_is_faint_everywhere_vanishes(training: Training, stuck: Stuck) -> None:
    assert is_found(vanishing_gradient.run(training(1000, grad=1e-12, **stuck)))
    assert not vanishing_gradient.run(training(1000, grad=2e-5, **stuck))


def test_a_flat_loss_of_which_nothing_is_known_is_a_note(training: Training, stuck: Stuck) -> None:
    flat = training(1000, loss=stuck["loss"])
    assert is_found(stuck_loss.run(flat)) == (Severity.note, "possible")
