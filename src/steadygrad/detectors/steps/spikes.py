"""Steps whose gradient stands far above those before, and whether the loss came back."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steadygrad.core.finding import Advice, Finding, Severity, detector
from steadygrad.core.record import Record
from steadygrad.detectors.steps.course import course_of, noise_of

Floats = NDArray[np.float64]
QUIET = 20  # steps after which there is something to compare with


@dataclass(frozen=True, slots=True)
class Spike:
    """One spike: its step, how many times the typical norm it is, and the loss around it."""

    step: int
    size: float
    before: float
    after: float
    stays: bool


@detector(
    "G108",
    "gradient-spike",
    needs=("norm", "loss"),
    explains=("G102", "G301", "G302", "G402", "G411"),
)
def gradient_spike(
    record: Record, *, factor: float = 10.0, sigmas: float = 8.0, within: int = 50
) -> Iterator[Finding]:
    """A gradient far above those before it.

    **What it looks at.** The logarithm of the norm before clipping against median and MAD of up to
    a hundred readings before: a spike is `factor` = 10 times the median and `sigmas` = 8 robust
    standard deviations above it. In the first 20 steps it is 1000 times what comes after, and does
    harm where the loss rises at once and ends no better than a constant prediction's. Then the
    loss: the median of `within` = 50 steps before against the steps from 50 after on, and against
    the end. It is a note when the loss came back, and a
    risk when it stays above by more than five times its noise and a tenth of itself, from then on
    to the end, in a run that had learned before and does not any more, or has lost half of what it
    had learned (all chosen by us).

    **Why it matters.** A single step may throw the weights to where units are dead; under Adam a
    spike holds the second moment up, so that steps stay small for 1 / (1 - beta2) steps.

    **When it is wrong.** Opponents, reinforcement learning and rare batches have heavy tails; large
    language models recover from most spikes within 50 to 200 steps.

    **What to try.** Clip at the 99th percentile of the norms; look at the batch of that step;
    a smaller beta2; QK-norm where the logits of attention grow.

    **References.** Chowdhery 2022 (PaLM), section 5.1; Molybog 2023; Takase 2023.
    """
    spikes = _spikes(record, factor, sigmas, within) or _early(record, sigmas)
    if not spikes:
        return
    worst = max(spikes, key=lambda one: (one.stays, one.size))
    course = course_of(record)
    useless = worst.step < QUIET and course.end >= 0.98 * course.constant
    learned = course.start - worst.before
    lost = worst.after - worst.before > 0.5 * learned > 0
    stays = worst.stays and (course.ill or useless or lost)
    large = f"{worst.size:.3g} times those {'before' if worst.step >= QUIET else 'after'} it"
    yield Finding(
        Severity.risk if stays else Severity.note,
        f"the gradient of step {worst.step} was {large}; the loss was {worst.before:.3g} until "
        f"then and is {worst.after:.3g} since."
        if stays
        else f"{_many(spikes)} far above those before, the largest, of step {worst.step}, "
        f"{large}; the loss shows no lasting harm.",
        ("optimizer",),
        {"spikes": float(len(spikes)), "size": worst.size, "step": float(worst.step)},
        confidence="likely" if stays else "possible",
        try_next=(Advice("clip-norm", "sg.guard(optimizer, sg.clip_norm(1.0))"),),
        steps=(spikes[0].step, spikes[-1].step),
        magnitude=math.log10(worst.size),
    )


def _many(spikes: list[Spike]) -> str:
    return "one gradient stood" if len(spikes) == 1 else f"{len(spikes)} gradients stood"


def _spikes(record: Record, factor: float, sigmas: float, within: int) -> list[Spike]:
    norm, loss = record.series("norm", "step"), record.series("loss", "step")
    if not norm.shape[1]:
        return []
    good = np.isfinite(norm[:, 0]) & (norm[:, 0] > 0) & np.isfinite(loss[:, 0])
    steps, size, loss = record.steps[good], np.log(norm[good, 0]), loss[good, 0]
    found = []
    for place in range(QUIET, len(size)):
        if size[place] - size[place - 1] < math.log(factor) / 2:  # cheap: a spike begins sharply
            continue
        before = size[max(0, place - 100) : place]
        typical = float(np.median(before))
        spread = 1.4826 * float(np.median(np.abs(before - typical)))
        if size[place] - typical > max(math.log(factor), sigmas * spread):
            times = math.exp(float(size[place]) - typical)
            found.append(_around(steps, loss, place, times, within))
    return found


def _early(record: Record, sigmas: float, *, factor: float = 1000.0) -> list[Spike]:
    """A gradient in the first steps that stands by `factor` = 1000 above those that come after.

    Three decades: chosen by us, as first gradients are larger than later ones in healthy runs.
    """
    norm, loss = record.series("norm", "step"), record.series("loss", "step")
    if not norm.shape[1]:
        return []
    good = np.isfinite(norm[:, 0]) & (norm[:, 0] > 0) & np.isfinite(loss[:, 0])
    steps, size, loss = record.steps[good], np.log(norm[good, 0]), loss[good, 0]
    early, late = size[:QUIET], size[QUIET : 5 * QUIET]
    if len(late) < QUIET or steps[0] >= QUIET:
        return []
    typical, place = float(np.median(late)), int(np.argmax(early))
    spread = 1.4826 * float(np.median(np.abs(late - typical)))
    above = float(early[place]) - typical
    if above <= max(math.log(factor), sigmas * spread):
        return []
    before, after = float(loss[place]), float(np.median(loss[-max(10, len(loss) // 4) :]))
    harmed = float(np.median(loss[place + 1 : place + 11])) > before
    return [Spike(int(steps[place]), math.exp(above), before, after, stays=harmed)]


def _around(steps: NDArray[np.int64], loss: Floats, place: int, size: float, within: int) -> Spike:
    """Compare the loss before a spike with the loss when it should have recovered."""
    here = int(steps[place])
    before = loss[(steps < here) & (steps >= here - within)]
    after = loss[steps > here + within]
    level = float(np.median(before)) if len(before) else math.nan
    if len(after) < 10 or len(before) < 10:
        return Spike(here, size, level, math.nan, stays=False)
    bar = level + max(5 * noise_of(before), 0.1 * abs(level))
    parts = np.array_split(after, 5)
    middles = [float(np.median(part)) for part in parts if len(part)]
    return Spike(here, size, level, min(middles), stays=min(middles) > bar)
