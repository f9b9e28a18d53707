"""Are the sick really sick and the healthy really healthy? Train each for a while and see."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from bench.table import Row, markdown, publish
from steadygrad.testing import HEALTHY, PATIENTS
from steadygrad.testing.case import Case, Patient, generator_at

STEPS = 120
SEEDS = (0, 1)
NOT_LEARNING = 0.9  # of the first loss: what ten percent of progress is not
WORSE = 2.0  # times the twin's last loss
LEARNED = 1e-4  # nobody is worse than a twin below this loss
OF_ANOTHER_KIND = {
    "cloned-encoder-layers": "a note: the layers grow apart, slowly",
    "uninitialised-weight-of-small-integers": "another run gets other numbers from its memory",
    "half-precision-without-headroom": "overflows with another batch or after some steps",
    "dead-channels": "the channels that are left learn one batch",
    "mask-of-0-and-255": "the loss has no lower bound: it falls for ever",
}


def run(seeds: Sequence[int] = SEEDS, steps: int = STEPS) -> None:
    """Train every patient, its twin, and every healthy network; write ground_truth.md."""
    warnings.simplefilter("ignore")
    sick = [row for patient in PATIENTS for row in _sick(patient, seeds, steps)]
    healthy = [row for patient in HEALTHY for row in _healthy(patient, seeds, steps)]
    doubtful = [str(row[0]) for row in (*sick, *healthy) if row[-1] == "DOUBTFUL"]
    text = (
        f"Loss after {steps} steps on one batch (recurrent networks: a new batch each step), over "
        f"the first loss, with the case's own optimizer or Adam at 1e-3, seeds {tuple(seeds)}. A "
        f"sick network is as expected when it stays above {NOT_LEARNING} of that, breaks, or ends "
        f"at more than {WORSE:g} times the loss of its twin; a healthy one when its loss falls."
    )
    tables = [
        "## Sick\n\n" + markdown(("patient", "codes", "sick", "twin", "verdict"), sick),
        "## Healthy\n\n" + markdown(("network", "loss", "verdict"), healthy),
    ]
    parts = [text, f"Doubtful: {', '.join(doubtful) or 'none'}.", *tables]
    publish("ground_truth", "Ground truth: what training says", parts)


@dataclass(frozen=True, slots=True)
class Course:
    """First and last loss of a short training; the last is NaN when something broke."""

    first: float
    last: float

    @property
    def learns(self) -> bool:
        """Whether the loss fell."""
        return self.last < self.first - (1 - NOT_LEARNING) * abs(self.first)

    def __str__(self) -> str:
        """Say the last loss as a share of the first; as a difference where it may be negative."""
        if math.isnan(self.last):
            return "broken"
        if self.last < 0 or self.first <= 0:
            return f"{self.last - self.first:+.3g}"
        return f"{self.last / self.first:.3g}"


def _sick(patient: Patient, seeds: Sequence[int], steps: int) -> Iterator[Row]:
    if patient.build(0).loss is None:
        return
    mine = [course(patient.build(seed), steps) for seed in seeds]
    twins = [patient.build_twin(seed) for seed in seeds]
    theirs = [course(twin, steps) for twin in twins if twin is not None]
    stuck = all(not one.learns for one in mine)
    worse = bool(theirs) and all(map(_is_worse, mine, theirs))
    well = all(one.learns for one in theirs)
    verdict = "as expected" if (stuck or worse) and well else "DOUBTFUL"
    verdict = OF_ANOTHER_KIND.get(patient.name, verdict)
    yield patient.name, " ".join(sorted(patient.codes)), _words(mine), _words(theirs), verdict


def _is_worse(mine: Course, twin: Course) -> bool:
    return not mine.last < max(WORSE * abs(twin.last), LEARNED)


def _healthy(patient: Patient, seeds: Sequence[int], steps: int) -> Iterator[Row]:
    if patient.build(0).loss is None:
        return
    mine = [course(patient.build(seed), steps) for seed in seeds]
    yield patient.name, _words(mine), "as expected" if all(m.learns for m in mine) else "DOUBTFUL"


def course(case: Case, steps: int) -> Course:
    """Train a case for some steps; nothing that breaks on the way is raised."""
    assert case.loss is not None
    chosen = [p for p in case.model.parameters() if p.requires_grad]
    optimizer = case.optimizer or (torch.optim.Adam(chosen, lr=1e-3) if chosen else None)
    losses: list[float] = []
    with generator_at(0):
        for _ in range(steps):
            try:
                loss = case.loss(case.model)
            except (IndexError, RuntimeError):
                return Course(math.nan, math.nan)
            losses.append(float(loss.detach()))
            if optimizer is None or not loss.requires_grad:
                continue
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    last = statistics.mean(losses[-5:])
    sound = _is_finite(case.model) and math.isfinite(last)
    return Course(losses[0], last if sound else math.nan)


def _is_finite(model: nn.Module) -> bool:
    return all(bool(t.isfinite().all()) for t in (*model.parameters(), *model.buffers()))


def _words(courses: Sequence[Course]) -> str:
    return ", ".join(map(str, courses))
