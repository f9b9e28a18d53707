"""Judge hand-made losses: learning, standing, failing, or not to be judged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from steadygrad.core.record import Record, Site
from steadygrad.detectors.steps.course import course_of

Training = Callable[..., Record]


def noise(steps: int, size: float) -> np.ndarray:
    return size * np.random.default_rng(3).normal(size=(steps, 1))


def test_a_loss_that_falls_learns(training: Training) -> None:
    assert course_of(training(1000)).state == "learns"
    assert course_of(training(100)).state == "learns"


def test_a_loss_at_a_constant_prediction_fails(training: Training, stuck: dict[str, Any]) -> None:
    assert course_of(training(1000, **stuck)).state == "fails"


def test_a_loss_that_fell_to_a_constant_prediction_fails(
    training: Training, stuck: dict[str, Any]
) -> None:
    loss = stuck["loss"] + 50 * np.exp(-np.arange(1000) / 20)[:, None]
    assert course_of(training(1000, **stuck | {"loss": loss})).state == "fails"


def test_a_flat_loss_below_a_constant_prediction_has_learned_before(
    training: Training, stuck: dict[str, Any]
) -> None:
    loss = 0.3 + noise(1000, 0.02)
    assert course_of(training(1000, **stuck | {"loss": loss})).state == "learns"


def test_a_long_run_that_learned_in_its_first_steps_learns(training: Training) -> None:
    falls = 2.3 * np.exp(-np.arange(5000) / 10)[:, None]
    assert course_of(training(5000, loss=0.3 + falls + noise(5000, 0.01))).state == "learns"


def test_a_flat_loss_of_which_nothing_is_known_stands(training: Training) -> None:
    assert course_of(training(1000, loss=0.3 + noise(1000, 0.01))).state == "stands"


@pytest.mark.parametrize("size", [1.0, 5.0])
def test_a_loss_that_is_mostly_noise_is_not_judged(training: Training, size: float) -> None:
    assert course_of(training(300, loss=noise(300, size))).state == "unknown"


def test_a_warm_up_and_a_few_steps_are_not_judged(
    training: Training, stuck: dict[str, Any]
) -> None:
    rising = np.linspace(0, 0.1, 1000)[:, None]
    assert course_of(training(1000, lr=rising, **stuck)).state == "unknown"
    assert course_of(training(10)).state == "unknown"


def test_labels_that_are_mostly_noise_are_learned_all_the_same(
    training: Training, stuck: dict[str, Any]
) -> None:
    loss = 2.19 + 0.1 * np.exp(-np.arange(1000) / 100)[:, None] + noise(1000, 0.05)
    assert course_of(training(1000, **stuck | {"loss": loss})).state != "fails"


def test_of_opponents_no_loss_has_to_fall(training: Training) -> None:
    one = training(1000, loss=0.3 + noise(1000, 0.01))
    other = Site("optimizer.1", "step")
    values = np.concatenate([one.values, 2 * one.values[:, :1]], axis=1)
    both = Record((*one.sites, other), one.metrics, one.steps, values, one.facts)
    assert course_of(both).state == "unknown"


def test_an_empty_record_is_not_judged() -> None:
    empty = Record((), (), np.array([], dtype=np.int64), np.zeros((0, 0, 0), dtype=np.float32))
    assert course_of(empty).state == "unknown"
