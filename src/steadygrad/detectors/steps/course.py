"""The course of the loss: whether a run learns, stands, or fails, as far as its noise lets one say.

Every detector of many steps asks this before it calls anything ill: a strange number in a run
that learns is a strange number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from steadygrad.core.record import Record

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]
State = Literal["unknown", "learns", "stands", "fails"]
"""`fails`: no better than the best constant prediction. `stands`: it does not fall, and nobody
knows what a constant prediction costs, so that it may have learned before. `unknown`: too short or
too noisy to say, a warm-up still under way, or opponents whose losses need not fall."""


@dataclass(frozen=True, slots=True)
class Course:
    """What the loss did: `start` and `end` are medians, `constant` is NaN where it is unknown.

    `noise` is the standard deviation of one loss, estimated from its differences. The
    constant is that of all data, see `_of_all_data`.
    """

    state: State
    steps: int
    start: float = math.nan
    end: float = math.nan
    noise: float = math.nan
    constant: float = math.nan

    @property
    def ill(self) -> bool:
        """Whether the loss gives no sign of learning."""
        return self.state in ("stands", "fails")

    @property
    def worse(self) -> bool:
        """Whether the loss is far worse than a constant prediction's, though it may be falling."""
        return self.end > 2 * self.constant

    @property
    def scale(self) -> float:
        """What changes of the loss are compared with; it moves with the loss."""
        known = (abs(self.start), abs(self.end), self.noise)
        return max((size for size in known if math.isfinite(size)), default=math.nan)

    @property
    def words(self) -> str:
        """What the loss did, as the end of a sentence."""
        if self.state == "fails":
            return (
                f"the loss stays at {self.end:.3g}, no better than the {self.constant:.3g} of a "
                "constant prediction"
            )
        return f"the loss went from {self.start:.3g} to {self.end:.3g}"


def course_of(record: Record, *, least: int = 20) -> Course:
    """Judge the loss of a run of at least `least` = 20 steps (chosen by us)."""
    length = span(record)
    loss = _objective(record)
    if loss is None:
        return Course("unknown", length)
    known = np.isfinite(loss)
    steps, loss = record.steps[known], loss[known]
    if len(loss) < least or length < least:
        return Course("unknown", length)
    first, last = ends(steps)
    start, end = float(np.median(loss[first])), float(np.median(loss[last]))
    batch = _constant(record, end)
    constant = _of_all_data(record, batch)
    state: State = "unknown"
    better = not end >= 0.98 * constant or not loss[-1] >= 0.98 * batch
    if not better and _climbed(loss, start, end):
        state = "fails"
    elif not warming_up(record):
        state = _state(steps, loss, constant, better=better)
    return Course(state, length, start, end, noise_of(loss), constant)


def _state(steps: Whole, loss: Floats, constant: float, *, better: bool) -> State:
    """Judge the course, given whether it ends better than a constant prediction or nobody knows."""
    end = float(np.median(loss[ends(steps)[1]]))
    if not better and end <= 1.1 * constant and _stands(steps, loss, constant):
        return "fails" if _known(steps, loss, constant) else "unknown"
    if fell(steps, loss) or _began_higher(loss, end) or (better and end < 0.9 * constant):
        return "learns"
    flat: State = "stands" if better else "fails"
    rose = fell(steps, -loss)
    return flat if rose or _known(steps, loss, end) else "unknown"


def _climbed(loss: Floats, start: float, end: float) -> bool:
    """Whether the loss is still above where it began, after twice that: a fall from there is none.

    Twice: chosen by us, since the loss of one batch is noisy, and no warm-up excuses that much.
    """
    return bool(end >= loss[0] > 0 and max(start, end) > 2 * loss[0])


def _began_higher(loss: Floats, end: float, *, sigmas: float = 4.0) -> bool:
    """Whether the first three losses lie above the end: a long run learned most of it by then."""
    least = sigmas * 1.25 * noise_of(loss) / math.sqrt(3) + 0.01 * abs(end)
    return float(np.median(loss[:3])) - end > least


def _stands(steps: Whole, loss: Floats, constant: float, *, crawl: float = 0.01) -> bool:
    """Whether the later half does not fall; or so little in 500 steps (chosen by us) as not to."""
    late = steps >= steps[0] + (steps[-1] - steps[0]) / 2
    steps, loss = steps[late], loss[late]
    first, last = ends(steps)
    drop = float(np.median(loss[first]) - np.median(loss[last]))
    crawls = steps[-1] - steps[0] >= 490 and drop < crawl * constant
    return bool(crawls) or not fell(steps, loss)


def _known(steps: Whole, loss: Floats, size: float, *, share: float = 0.06) -> bool:
    """Whether the noise would let us see a fall by a `share` = 6 % of the loss (chosen by us).

    Three standard errors of the fall of a straight line through the run, sqrt(12 / n) noise each. A
    loss noisier than that may fall, or be a little better than a constant, without our seeing it.
    """
    late = int(ends(steps)[1].sum())
    many = min(len(loss), 4 * late)  # where the beginning was thinned out, its rows tell less
    return bool(3 * noise_of(loss) * math.sqrt(12 / many) <= share * abs(size))


def span(record: Record) -> int:
    """Count the steps from the first to the last."""
    return int(record.steps[-1] - record.steps[0]) + 1 if len(record.steps) else 0


def _objective(record: Record) -> Floats | None:
    """Loss [steps] of the one optimizer, or of several that step on one loss; None for opponents.

    Among opponents none of the losses has to fall.
    """
    losses = record.series("loss", "step")
    losses = losses[:, ~np.all(np.isnan(losses) | (losses == 0), axis=0)]
    if not losses.shape[1]:
        return None
    alike = np.isclose(losses, losses[:, :1], atol=0.0, equal_nan=True)
    return losses[:, 0] if bool(alike.all()) else None


def ends(steps: Whole) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Mark the first twentieth (at least three steps) and the last quarter of the steps."""
    length = steps[-1] - steps[0]
    return steps <= steps[0] + max(2, 0.05 * length), steps >= steps[-1] - 0.25 * length


def noise_of(loss: Floats) -> float:
    """Estimate the standard deviation of one loss: differences are free of a slow trend."""
    return float(1.4826 * np.median(np.abs(np.diff(loss))) / math.sqrt(2))


def fell(steps: Whole, loss: Floats, *, sigmas: float = 4.0) -> bool:
    """Whether the end is below the start, or the trend points down, beyond the noise.

    The medians of both ends differ by more than `sigmas` = 4 standard errors, or of 45 pairs of the
    medians of ten parts 33 more fall than rise (Kendall's S; either happens by chance less than
    once in a thousand times).
    """
    if len(loss) < 10:
        return False
    first, last = ends(steps)
    drop = float(np.median(loss[first]) - np.median(loss[last]))
    resolution = 1e-6 * float(np.median(np.abs(loss)))
    error = 1.25 * noise_of(loss) * math.sqrt(1 / first.sum() + 1 / last.sum())
    return drop > sigmas * error + resolution or _trend(steps, loss, resolution) <= -33


def _trend(steps: Whole, loss: Floats, resolution: float) -> float:
    """Kendall's S of the medians of ten equally long parts."""
    part = np.minimum(10 * (steps - steps[0]) // max(steps[-1] - steps[0], 1), 9)
    middles = np.array([np.median(loss[part == one]) for one in range(10) if (part == one).any()])
    rises = middles[None, :] - middles[:, None]
    return float(np.sum(np.triu(np.sign(np.where(np.abs(rises) > resolution, rises, 0.0)), 1)))


def _constant(record: Record, end: float) -> float:
    """What a constant prediction costs: once, or in each backward pass of a step; NaN: unknown."""
    facts = record.facts.get("constant") or {}
    once = float(facts.get("loss") or 0.0)
    if not once > 0 or not math.isfinite(once):
        return math.nan
    passes = record.series("backwards", "step")
    many = float(np.nanmedian(passes)) if np.isfinite(passes).any() else 1.0
    return min((once, once * max(many, 1.0)), key=lambda cost: abs(cost - end))


def _of_all_data(record: Record, batch: float) -> float:
    """What the best constant costs on all data, given what it costs on a batch, to which it is fit.

    For C classes and N labels the entropy of a batch is too low by (C - 1) / 2N on average (Miller
    and Madow 1955). Twice that is taken, since what it costs less by chance must not make a network
    look bad; where N is not known, a tenth more; never more than ln C.
    """
    facts = record.facts.get("constant") or {}
    classes, entropy = int(facts.get("classes") or 0), float(facts.get("labels_entropy") or 0.0)
    if classes < 2 or not entropy > 0 or math.isnan(batch):
        return batch
    count = int(facts.get("count") or 0)
    nats = min(entropy + (classes - 1) / count if count else 1.1 * entropy, math.log(classes))
    return batch * max(nats / entropy, 1.0)


def warming_up(record: Record) -> bool:
    """Whether the lr is still rising at the end of what was recorded."""
    rates = record.series("lr", "step")
    rates = rates[np.isfinite(rates).all(axis=1)] if rates.size else rates
    if len(rates) < 2 or not rates.shape[1]:
        return False
    middle, last = rates[len(rates) // 2], rates[-1]
    return bool(np.any((last > 1.02 * middle) & (last >= 0.99 * rates.max(axis=0))))
