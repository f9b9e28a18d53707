"""A watch finds sick trainings, leaves healthy ones in peace, and changes neither."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress

import pytest
import torch
from torch import nn

import steadygrad as sg
from steadygrad.core.finding import Severity
from steadygrad.core.report import Report
from steadygrad.testing import HEALTHY_TRAININGS, TRAININGS, Training

EVERYBODY = TRAININGS + HEALTHY_TRAININGS
ALIKE = [one for one in EVERYBODY[::8] if not one.raises]


def report_on(run: Callable[[], object], *raised: type[Exception]) -> Report:
    """Watch as closely as a slow machine would be watched: the verdict must not depend on that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with suppress(*raised), sg.watch(overhead=1.0) as watch:
            run()
        return watch.report()


@pytest.mark.parametrize("training", TRAININGS, ids=lambda one: one.name)
def test_a_sick_training_is_found(training: Training) -> None:
    report = report_on(training.run, *training.raises)
    assert training.found(report), str(report)
    assert training.named(report), str(report)
    assert training.located(report), str(report)


@pytest.mark.parametrize("training", TRAININGS[::4], ids=lambda one: one.name)
def test_its_twin_is_healthy(training: Training) -> None:  # the others: bench/trainings.py
    report = report_on(training.run_twin)
    assert report.worst is Severity.note, str(report)
    assert report.verdict == "healthy"


@pytest.mark.parametrize("training", HEALTHY_TRAININGS, ids=lambda one: one.name)
def test_a_healthy_training_is_left_in_peace(training: Training) -> None:
    report = report_on(training.run)
    assert report.worst is Severity.note, str(report)
    assert report.verdict == "healthy"


@pytest.mark.parametrize("training", ALIKE, ids=lambda one: one.name)
def test_a_watched_training_is_the_unwatched_one(training: Training) -> None:
    bare = training.run(1)
    watched: list[nn.Module] = []
    report_on(lambda: watched.append(training.run(1)))
    assert bits(bare) == bits(watched[0])


def bits(model: nn.Module) -> list[bytes]:
    """What a training leaves behind in a model."""
    state = (one.contiguous().view(-1).view(torch.uint8) for one in model.state_dict().values())
    return [one.numpy().tobytes() for one in state]


def test_trainings_have_different_names_and_say_why() -> None:
    assert len({one.name for one in EVERYBODY}) == len(EVERYBODY)
    assert all(one.why for one in EVERYBODY)
    assert all(one.codes and one.where and one.twin for one in TRAININGS)


def test_a_training_leaves_the_generator_as_it_was() -> None:
    before = torch.get_rng_state()
    HEALTHY_TRAININGS[1].run(5)
    assert torch.equal(before, torch.get_rng_state())
