"""Are the sick really sick and the healthy really healthy? Train each for a while and see."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from bench.table import Row, markdown, publish
from steadygrad.testing import HEALTHY, PATIENTS
from steadygrad.testing.case import Case, Patient, generator_at

STEPS = 120
SEEDS = (0, 1)
NOT_LEARNING = 0.9  # of the first loss: what ten percent of progress is not
WORSE = 2.0  # times the twin's last loss, as a share of the first


def run(seeds: Sequence[int] = SEEDS, steps: int = STEPS) -> None:
    """Train every patient, its twin, and every healthy network; write ground_truth.md."""
    warnings.simplefilter("ignore")
    sick = [row for patient in PATIENTS for row in _sick(patient, seeds, steps)]
    healthy = [row for patient in HEALTHY for row in _healthy(patient, seeds, steps)]
    doubtful = [str(row[0]) for row in (*sick, *healthy) if "as expected" not in str(row[-1])]
    text = (
        f"Loss after {steps} steps on one batch over the first loss, with the case's own optimizer "
        f"or Adam at 1e-3, seeds {tuple(seeds)}. A sick network is as expected when it stays above "
        f"{NOT_LEARNING} or breaks, or ends {WORSE} times above its twin; a healthy one when it "
        "falls. Some illnesses do not show in one batch's loss (a buffer, a note, headroom)."
    )
    tables = [
        "## Sick\n\n" + markdown(("patient", "codes", "sick", "twin", "verdict"), sick),
        "## Healthy\n\n" + markdown(("network", "loss", "verdict"), healthy),
    ]
    publish(
        "ground_truth", "Ground truth: what training says", [text, f"Doubtful: {doubtful}", *tables]
    )


def _sick(patient: Patient, seeds: Sequence[int], steps: int) -> Iterator[Row]:
    if patient.build(0).loss is None:
        return
    mine = [progress(patient.build(seed), steps) for seed in seeds]
    twins = [patient.build_twin(seed) for seed in seeds]
    theirs = [progress(twin, steps) for twin in twins if twin is not None]
    stuck = all(not share < NOT_LEARNING for share in mine)
    worse = bool(theirs) and all(
        not m < max(WORSE * t, 0.05) for m, t in zip(mine, theirs, strict=True)
    )
    well = not theirs or all(share < NOT_LEARNING for share in theirs)
    verdict = "as expected" if (stuck or worse) and well else "DOUBTFUL"
    yield patient.name, " ".join(sorted(patient.codes)), _words(mine), _words(theirs), verdict


def _healthy(patient: Patient, seeds: Sequence[int], steps: int) -> Iterator[Row]:
    if patient.build(0).loss is None:
        return
    mine = [progress(patient.build(seed), steps) for seed in seeds]
    well = all(share < NOT_LEARNING for share in mine)
    yield patient.name, _words(mine), "as expected" if well else "DOUBTFUL"


def progress(case: Case, steps: int) -> float:
    """Return the last loss over the first; NaN when the loss or the model breaks on the way."""
    assert case.loss is not None
    chosen = [p for p in case.model.parameters() if p.requires_grad]
    optimizer = case.optimizer or (torch.optim.Adam(chosen, lr=1e-3) if chosen else None)
    losses: list[float] = []
    with generator_at(0):
        for _ in range(steps):
            try:
                loss = case.loss(case.model)
            except (IndexError, RuntimeError):
                return math.nan
            losses.append(float(loss.detach()))
            if optimizer is None or not loss.requires_grad:
                continue
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return _share(losses, case.model)


def _share(losses: list[float], model: nn.Module) -> float:
    healthy = all(bool(p.isfinite().all()) for p in (*model.parameters(), *model.buffers()))
    last, first = sum(losses[-5:]) / len(losses[-5:]), losses[0]
    lowest = min(losses)
    if not healthy or not math.isfinite(last):
        return math.nan
    if lowest < 0:  # only progress counts where the loss has no natural zero
        return 0.0 if last < first - 0.1 * abs(first) else 1.0
    return last / first if first else 1.0


def _words(shares: Sequence[float]) -> str:
    return ", ".join("broken" if math.isnan(share) else f"{share:.3g}" for share in shares)
