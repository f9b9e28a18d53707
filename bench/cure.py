"""Cure sick networks: how many, against random search, and whether healthy ones are left alone."""

from __future__ import annotations

import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from statistics import fmean
from typing import Any

import torch
from torch import nn

import steadygrad as sg
from bench.table import Row, markdown, publish
from steadygrad._cure import performed
from steadygrad._search import Plan
from steadygrad.core.trial import CLOSE, Arm, Cure, Trial
from steadygrad.testing import HEALTHY, PATIENTS, Patient

STEPS = 60
SEEDS = (0, 1, 2)
NEAR = 0.1  # of the way from the sick to the healthy twin that may be missing
EVERY = 2  # patient is taken: the odd ones are held out, for tuning
Case = Any
UNITS = {"targets-of-1e8-under-sgd": 1e16, "targets-of-a-million": 9e10}
"""Patients whose targets have another unit than their twins', and its power in the loss."""

UNLIKE = {
    "rnn-200-steps": "the twin reads 5 steps, and need not remember",
    "lstm-300-steps": "the twin reads 5 steps, and need not remember",
    "gru-300-steps": "the twin reads 5 steps, and need not remember",
    "cell-in-a-loop-100-steps": "the twin reads 5 steps, and need not remember",
    "relu-rnn-gain-1.7": "the twin reads 5 steps, and need not remember",
    "tanh-rnn-gain-4": "the twin reads 5 steps, and need not remember",
    "one-sample-standardized": "the twin has 64 samples; one has no deviation",
    "all-labels-ignored": "there are no labels to learn from",
    "all-classes-padding": "there are no labels to learn from",
    "everything-frozen": "torch raises, before anything is trained, and says why",
    "label-minus-one": "torch raises, before anything is trained, and says why",
    "labels-from-one": "torch raises, before anything is trained, and says why",
}
"""Patients whose twin learns something else, so that its loss is no aim, and why."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one patient."""

    name: str
    before: float
    after: float
    twin: float
    chosen: str
    start: float  # of the healthy twin, untrained
    against: str  # random search, by gain: ahead, equal, behind, or neither
    strictly: str  # the same, seed by seed
    upto: str  # the same by gain, of which what lies beyond the twin is not counted
    steps: int
    seconds: float
    found: str
    own: bool = False  # the loss that it ends with is another one

    @property
    def well(self) -> bool:
        """Whether it comes near its twin as it is, from where that begins."""
        return not self.own and self.before <= self.twin + NEAR * max(0.0, self.start - self.twin)

    @property
    def cured(self) -> bool:
        """Whether the prescription comes near the healthy twin."""
        if not self.chosen or not self.after < float("inf"):
            return False
        begin = self.before if self.before < float("inf") else self.start
        return self.after <= self.twin + NEAR * max(0.0, begin - self.twin)


def setup_of(patient: Patient, *, twin: bool) -> sg.Setup:
    """A training of a patient on the one batch that its loss holds."""
    case = patient.make() if not twin or patient.twin is None else patient.twin()
    loss = case.loss
    if loss is None:
        raise ValueError(f"{patient.name} has no loss")
    optimizer = case.optimizer or torch.optim.SGD(case.model.parameters(), lr=0.01)

    def of_batch(model: nn.Module, _batch: object) -> torch.Tensor:
        return loss(model)

    return sg.Setup(case.model, optimizer, of_batch, repeat(None))


def treat(name: str) -> Outcome:
    """Cure one patient."""
    patient = next(one for one in (*PATIENTS, *HEALTHY) if one.name == name)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    begin = time.perf_counter()
    make = partial(setup_of, patient, twin=False)
    try:
        report = sg.cure(make, steps=STEPS, seeds=SEEDS)
    except Exception as error:
        said = f"raises {type(error).__name__}: {error}"[:80]
        seconds = time.perf_counter() - begin
        neither = ("neither",) * 3
        return Outcome(patient.name, 0, 0, 0, "", 0, *neither, 0, seconds, said)
    cure = report.cure or Cure()
    twins = [performed(partial(setup_of, patient, twin=True), Arm((), s, STEPS)) for s in SEEDS]
    bare, chosen = cure.trials[0], cure.prescription
    unit = UNITS.get(name, 1.0)
    start = unit * fmean(one.start for one in twins)
    twin = unit * fmean(one.end(STEPS) for one in twins)
    return Outcome(
        patient.name,
        fmean(bare.after),
        fmean(chosen.after) if chosen else fmean(bare.after),
        twin,
        cure.chosen,
        start,
        *against_random(cure, start, -math.inf),
        against_random(cure, start, twin)[0],
        cure.spent,
        time.perf_counter() - begin,
        ", ".join(one.code for one in report.findings),
        chosen is not None and chosen.own,
    )


def against_random(cure: Cure, start: float, least: float) -> tuple[str, str]:
    """How the best that was proposed stands beside the best blind draw, by gain, and strictly.

    Gains are the fall from the untouched end, or from `start` where that is not finite; within 5 %
    of the larger one they are equal, as they are for the prescription; a loss below `least` counts
    as that. Strictly it is ahead where it is better on every seed.
    """
    mine = _best([one for one in cure.trials if one.remedies and not one.random])
    blind = _best([one for one in cure.trials if one.random])
    if mine is None or blind is None:
        said = "neither" if mine is blind else ("ahead" if mine else "behind")
        return said, said
    begin = fmean(mine.before) if math.isfinite(fmean(mine.before)) else start
    gains = [begin - max(least, fmean(one.after)) for one in (mine, blind)]
    gap = gains[0] - gains[1]
    equal = abs(gap) <= CLOSE * max(map(abs, gains))
    signs = {a < b for a, b in zip(mine.after, blind.after, strict=True)}
    each = "equal" if len(signs) > 1 else ("ahead" if True in signs else "behind")
    return "equal" if equal else ("ahead" if gap > 0 else "behind"), each


def _best(trials: Sequence[Trial]) -> Trial | None:
    helping = [one for one in trials if one.verdict == "helps"]
    return min(helping, key=lambda one: fmean(one.after), default=None)


def run(count: int | None = None) -> None:
    """Treat the patients; write cure.md."""
    have = [one for one in PATIENTS if one.twin is not None][::EVERY][:count]
    with ProcessPoolExecutor(max(1, (os.cpu_count() or 2) // 2)) as pool:
        sick = list(map(_told, pool.map(treat, [one.name for one in have])))
        names = [one.name for one in HEALTHY if one.make().loss][:24]
        well = list(map(_told, pool.map(treat, names)))
    well_off = [one for one in sick if one.well and one.name not in UNLIKE]
    alike = [one for one in sick if one.name not in UNLIKE and not one.well]
    upto = [one.upto for one in alike]
    by_gain, strictly = [one.against for one in alike], [one.strictly for one in alike]
    lower = sum(one.after > one.before and not one.own for one in sick)
    left = sum(not one.chosen for one in well)
    asked = Plan(STEPS, SEEDS).budget
    rows: list[Row] = [
        ("cured: near the healthy twin", _of(alike, lambda one: one.cured), ">= 98 %"),
        ("helped: better on every seed", _of(alike, lambda one: bool(one.chosen)), ""),
        ("as good as the twin untouched, and not counted", str(len(well_off)), ""),
        ("of those whose twin learns something else: helped", _others(sick), ""),
        ("ended worse", str(lower), "0"),
        ("ahead of random search, by gain", f"{by_gain.count('ahead')} of {len(alike)}", ">= 80 %"),
        ("equal to it, within 5 % of the gain", str(by_gain.count("equal")), ""),
        ("behind it", str(by_gain.count("behind")), "0"),
        ("up to the twin's level: ahead", f"{upto.count('ahead')} of {len(alike)}", ""),
        ("up to the twin's level: equal", str(upto.count("equal")), ""),
        ("up to the twin's level: behind", str(upto.count("behind")), ""),
        ("better than it on every seed", f"{strictly.count('ahead')} of {len(alike)}", ""),
        ("worse than it on every seed", str(strictly.count("behind")), ""),
        ("healthy, left alone", f"{left} of {len(well)}", ">= 95 %"),
        ("steps of training, mean", fmean(one.steps for one in sick), f"<= {asked}"),
        ("steps of training, most", str(max(one.steps for one in sick)), f"<= {asked}"),
    ]
    header = ("patient", "found", "before", "after", "twin", "chosen", "random", "steps", "s")
    each = [_line(one) for one in sick]
    publish(
        "cure",
        "Cure",
        [
            f"`sg.cure(setup, steps={STEPS}, seeds={list(SEEDS)})`, on every second patient that "
            "has a healthy twin, each trained on the one batch that its loss holds. A patient is "
            f"cured where its loss lacks at most {NEAR:.0%} of the way to its twin's, from where "
            "it ends untouched, or, where that is not finite, from where the twin begins. Gains "
            "are counted from there too.",
            markdown(("what", "reached", "asked"), rows),
            "## Sick",
            markdown(header, each),
            "## Healthy",
            "\n".join(f"- {one.name}: {one.chosen}" for one in well if one.chosen)
            or "None was given a prescription.",
            "## Twins that learn something else",
            "\n".join(f"- {one.name}: {UNLIKE[one.name]}" for one in sick if one.name in UNLIKE),
        ],
    )


def _told(one: Outcome) -> Outcome:
    """Say how one patient fared, as the whole takes a quarter of an hour."""
    print(*_line(one), sep="  ", file=sys.stderr, flush=True)
    return one


def _of(some: Sequence[Outcome], those: Callable[[Outcome], bool]) -> str:
    return f"{sum(map(those, some))} of {len(some)}"


def _others(sick: Sequence[Outcome]) -> str:
    return _of([one for one in sick if one.name in UNLIKE], lambda one: bool(one.chosen))


def _line(one: Outcome) -> Row:
    mark = "" if one.cured else (" (helped)" if one.chosen else " (not)")
    mark = " (well)" if one.well else mark
    mark = " (else)" if one.name in UNLIKE else mark
    numbers = one.before, one.after, one.twin
    return (one.name + mark, one.found, *numbers, one.chosen, one.against, one.steps, one.seconds)


if __name__ == "__main__":
    run()
