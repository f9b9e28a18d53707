"""Cure sick networks: how many, against random search, and whether healthy ones are left alone."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Sequence
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
from steadygrad.core.trial import Arm, Cure, Trial
from steadygrad.testing import HEALTHY, PATIENTS, Patient

STEPS = 60
SEEDS = (0, 1, 2)
NEAR = 0.1  # of the way from the sick to the healthy twin that may be missing
EVERY = 2  # patient is taken: the odd ones are held out, for tuning
Case = Any


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one patient."""

    name: str
    before: float
    after: float
    twin: float
    chosen: str
    against: str  # random search: ahead, equal, behind, or neither
    steps: int
    seconds: float
    found: str

    @property
    def cured(self) -> bool:
        """Whether the prescription comes near the healthy twin."""
        if not self.chosen or not self.after < float("inf"):
            return False
        if self.before == float("inf"):
            return self.after <= self.twin + NEAR * abs(self.twin) + 1e-3
        return self.after <= self.twin + NEAR * max(0.0, self.before - self.twin)


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
        said = f"{type(error).__name__}: {error}"[:80]
        return Outcome(patient.name, 0, 0, 0, "", "neither", 0, time.perf_counter() - begin, said)
    cure = report.cure or Cure()
    twins = [performed(partial(setup_of, patient, twin=True), Arm((), s, STEPS)) for s in SEEDS]
    bare, chosen = cure.trials[0], cure.prescription
    return Outcome(
        patient.name,
        fmean(bare.after),
        fmean(chosen.after) if chosen else fmean(bare.after),
        fmean(one.end(STEPS) for one in twins),
        cure.chosen,
        _against_random(cure),
        cure.spent,
        time.perf_counter() - begin,
        ", ".join(one.code for one in report.findings),
    )


def _against_random(cure: Cure) -> str:
    mine = _best([one for one in cure.trials if one.remedies and not one.random])
    blind = _best([one for one in cure.trials if one.random])
    if mine is None or blind is None:
        return "neither" if mine is blind else ("ahead" if mine else "behind")
    spread = 0.05 * max(abs(fmean(mine.after)), abs(fmean(blind.after)))
    gap = fmean(blind.after) - fmean(mine.after)
    return "equal" if abs(gap) <= spread else ("ahead" if gap > 0 else "behind")


def _best(trials: Sequence[Trial]) -> Trial | None:
    helping = [one for one in trials if one.verdict == "helps"]
    return min(helping, key=lambda one: fmean(one.after), default=None)


def run(count: int | None = None) -> None:
    """Treat the patients; write cure.md."""
    have = [one for one in PATIENTS if one.twin is not None][::EVERY][:count]
    with ProcessPoolExecutor(max(1, (os.cpu_count() or 2) // 2)) as pool:
        sick = list(pool.map(treat, [one.name for one in have]))
        well = list(pool.map(treat, [one.name for one in HEALTHY if one.make().loss][:24]))
    cured = sum(one.cured for one in sick)
    helped = sum(bool(one.chosen) for one in sick)
    ahead = [one.against for one in sick]
    lower = sum(one.after > one.before for one in sick)
    left = sum(not one.chosen for one in well)
    asked = Plan(STEPS, SEEDS).budget
    rows: list[Row] = [
        ("cured: near the healthy twin", f"{cured} of {len(sick)}", ">= 98 %"),
        ("helped: better on every seed", f"{helped} of {len(sick)}", ""),
        ("ended worse", str(lower), "0"),
        ("ahead of random search", f"{ahead.count('ahead')} of {len(sick)}", ">= 80 %"),
        ("equal to it, within 5 %", str(ahead.count("equal")), ""),
        ("behind it", str(ahead.count("behind")), "0"),
        ("healthy, left alone", f"{left} of {len(well)}", ">= 95 %"),
        ("steps of training, mean", fmean(one.steps for one in sick), f"<= {asked}"),
    ]
    header = ("patient", "found", "before", "after", "twin", "chosen", "random", "steps", "s")
    each = [_line(one) for one in sick]
    publish(
        "cure",
        "Cure",
        [
            f"`sg.cure(setup, steps={STEPS}, seeds={list(SEEDS)})`, on every second patient that "
            "has a healthy twin, each trained on the one batch that its loss holds. A patient is "
            f"cured where its loss lacks at most {NEAR:.0%} of the way to its twin's.",
            markdown(("what", "reached", "asked"), rows),
            "## Sick",
            markdown(header, each),
            "## Healthy",
            markdown(header, [_line(one) for one in well if one.chosen] or [("none",) * 9]),
        ],
    )


def _line(one: Outcome) -> Row:
    mark = "" if one.cured else (" (helped)" if one.chosen else " (not)")
    numbers = one.before, one.after, one.twin
    return (one.name + mark, one.found, *numbers, one.chosen, one.against, one.steps, one.seconds)


if __name__ == "__main__":
    run()
