"""A Trial: remedies beside the untouched training, on the same seeds and batches.

Arms are compared by the loss at their end, seed by seed: what differs between two runs of one seed
is the remedy alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import Literal

Verdict = Literal["helps", "no effect", "worse", "crashed", "unfit", "unsure"]

SHARE = 5  # the end is the last fifth of the losses: chosen by us, against the noise of batches
LEAST = 0.05  # of the untouched loss that a remedy has to take away at least: chosen by us
FALLEN = 0.02  # of itself that a loss falls by where anything is learned: chosen by us
LOST = 5  # losses in a row that are not finite, after which none will be: chosen by us
CLOSE = 0.05  # of the best gain that a smaller change may lack
T95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}
"""97.5 % quantiles of Student's t by degrees of freedom; above 9 it is taken for 2."""


@dataclass(frozen=True, slots=True)
class Arm:
    """A short training: with these remedies (none: untouched), at a seed, for so many steps."""

    remedies: tuple[str, ...]
    seed: int
    steps: int

    @property
    def name(self) -> str:
        """What a table calls it."""
        return " + ".join(self.remedies) or "no change"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an arm ended.

    `losses` [steps] are in the unit of the untouched training, each computed before its step.
    `error` says what ended it too early, `unfit` why there was nothing to change. `patch`
    are the lines to paste; with `imitates` they only come to what was tried. With `own` the loss is
    another one than the untouched training's, and is compared with where it began.
    """

    losses: tuple[float, ...] = ()
    patch: str = ""
    imitates: bool = False
    unfit: str = ""
    error: str = ""
    seconds: float = 0.0
    own: bool = False

    def end(self, steps: int) -> float:
        """The loss at the end of so many steps: the median of their last fifth; inf if broken."""
        losses = self.losses[:steps]
        last = losses[-max(1, len(losses) // SHARE) :]
        if self.error or self.unfit or not last or not all(map(math.isfinite, last)):
            return math.inf
        return median(last)

    @property
    def start(self) -> float:
        """The first loss; inf where it is not known, or not finite."""
        first = self.losses[0] if self.losses else math.inf
        return first if math.isfinite(first) else math.inf

    @property
    def stands(self) -> bool:
        """Whether the loss has not fallen from the first fifth of the steps to the last.

        It has fallen by 2 % of itself, and by more than two standard errors of the fifths.
        """
        count = len(self.losses)
        part = max(1, count // SHARE)
        first, last = self.losses[:part], self.losses[-part:]
        if self.error or not first or not all(map(math.isfinite, (*first, *last))):
            return True
        if median(last) < abs(first[0]) / 2:
            return False  # it has fallen at once, and stays where it is
        noise = math.hypot(_error(first), _error(last))
        fallen = median(first) - median(last)
        return fallen <= max(FALLEN * abs(median(first)), 2 * noise)


def lost(losses: Sequence[float]) -> bool:
    """Whether a training is over for good: several losses in a row are not finite."""
    return len(losses) >= LOST and not any(map(math.isfinite, losses[-LOST:]))


def _error(losses: Sequence[float]) -> float:
    """The standard error of a median, as if the losses were drawn from a normal distribution."""
    return 1.25 * stdev(losses) / math.sqrt(len(losses)) if len(losses) > 1 else 0.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """Losses [seeds] at the end, without and with a change; lower is better.

    `effect` is the mean difference and `interval` its 95 % interval over seeds (Student's t);
    -inf where the untouched training breaks and the changed one does not, and ends below where both
    began, at `start`, by a 20th at least. With `own` each is compared with where it began, so that
    what seeds differ by is no noise.
    """

    before: tuple[float, ...]
    after: tuple[float, ...]
    start: tuple[float, ...] = ()
    own: bool = False

    @property
    def differences(self) -> list[float]:
        """After less before, seed by seed; 0 where both are broken, or one and the other climbs."""
        starts = self.start or (math.inf,) * len(self.before)
        rows = zip(self.before, self.after, starts, strict=True)
        return [
            0.0 if a == b or (math.isinf(b) and a > s - LEAST * abs(s)) else a - b
            for b, a, s in rows
        ]

    @property
    def effect(self) -> float:
        """The mean difference."""
        return fmean(self.differences) if _are_finite(self.differences) else sum(self.differences)

    @property
    def interval(self) -> tuple[float, float]:
        """What the mean difference may be; (nan, nan) for a single seed."""
        mine = self.differences
        if len(mine) < 2 or not _are_finite(mine):
            return math.nan, math.nan
        half = T95.get(len(mine) - 1, 2.0) * stdev(mine) / math.sqrt(len(mine))
        return self.effect - half, self.effect + half

    @property
    def margin(self) -> float:
        """What a difference has to exceed on every seed: the seeds' own spread, and a least."""
        finite = [one for one in self.before if math.isfinite(one)]
        spread = stdev(finite) if len(finite) > 1 and not self.own else 0.0
        return max(spread, LEAST * max(map(abs, finite), default=0.0))

    @property
    def verdict(self) -> Verdict:
        """Helps where every seed is better by more than the margin; worse likewise.

        A training that ends anywhere between 10 and 10,000 has a spread that hides what mends it:
        so it also helps where the worst seed with the change is below the best without, by more
        than the seeds with it differ.
        """
        mine = self.differences
        if all(one < -self.margin for one in mine) or _lies_below(self.after, self.before):
            return "helps" if len(mine) > 1 else "unsure"
        if all(one > self.margin for one in mine) or _lies_below(self.before, self.after):
            return "worse"
        return "no effect"


def _lies_below(low: Sequence[float], high: Sequence[float]) -> bool:
    """Whether two sets of seeds are apart by more than the lower differs within itself."""
    if len(low) < 2 or not _are_finite((*low, *high)):
        return False
    least = LEAST * min(map(abs, high))
    return min(high) - max(low) > max(max(low) - min(low), least)


def _are_finite(numbers: Sequence[float]) -> bool:
    return all(map(math.isfinite, numbers))


@dataclass(frozen=True, slots=True)
class Trial:
    """One row of a cure: remedies, what they came to, and the lines that they stand for.

    `size` says how much they change, `why` what ended it, or why there was nothing to change.
    """

    remedies: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int
    before: tuple[float, ...]
    after: tuple[float, ...]
    verdict: Verdict
    effect: float = math.nan
    interval: tuple[float, float] = (math.nan, math.nan)
    size: int = 0
    patch: str = ""
    imitates: bool = False
    why: str = ""
    random: bool = False  # drawn blindly, to see what the diagnosis is worth
    own: bool = False  # the loss is another one, and `before` is where it began
    mends: bool = False  # it is for the data, the loss, or the wiring alone
    start: float = math.inf  # the mean first loss, with the change

    @property
    def name(self) -> str:
        """What a table calls it."""
        return " + ".join(self.remedies) or "no change"


@dataclass(frozen=True, slots=True)
class Confirmation:
    """The chosen change once more, for longer: the loss at the end without and with it."""

    steps: int
    seed: int
    before: float
    after: float

    @property
    def holds(self) -> bool:
        """Whether it is still better, and finite."""
        return math.isfinite(self.after) and self.after < self.before


@dataclass(frozen=True, slots=True)
class Cure:
    """All that was tried, and what came of it. `spent` are steps of training.

    `chosen` is the name of a trial, '' where nothing helped; `said` are sentences besides.
    """

    trials: tuple[Trial, ...] = ()
    chosen: str = ""
    confirmation: Confirmation | None = None
    spent: int = 0
    said: tuple[str, ...] = ()

    @property
    def prescription(self) -> Trial | None:
        """The trial that was chosen."""
        return next((one for one in self.trials if one.name == self.chosen), None)


def smallest(trials: Sequence[Trial], *, blind: bool = True) -> Trial | None:
    """Of the trials that help, the smallest change that comes within 5 % of the best gain.

    A blind draw is chosen only where `blind` says so and nothing else helps: part of it may be
    there for no reason.
    """
    helping = [one for one in trials if one.verdict == "helps"]
    proposed = [one for one in helping if not one.random]
    return cheapest(proposed or (helping if blind else []))


def cheapest(trials: Sequence[Trial]) -> Trial | None:
    """The smallest change that comes within 5 % of the best gain, of trials on the same seeds.

    What gives the training another loss comes before all that goes on with a wrong one, and what
    mends data or wiring before what makes up for them, if it ends below where the best begins.
    """
    trials = [one for one in trials if one.own] or trials
    lowest = min(trials, key=lambda one: fmean(one.after), default=None)
    begin = math.inf if lowest is None else lowest.start
    falls = [one for one in trials if _gain(one, begin) > 0] if math.isfinite(begin) else trials
    trials = [one for one in falls if one.mends] or trials
    gains = {id(one): _gain(one, begin) for one in trials}
    best = max(gains.values(), default=0.0)
    close = [one for one in trials if gains[id(one)] >= best - CLOSE * abs(best)]
    return min(close, key=lambda one: (one.size, fmean(one.after)), default=None)


def _gain(one: Trial, begin: float) -> float:
    """How far the loss falls: from the untouched end, or from `begin` where that is not finite.

    Another loss falls by a share of where it began.
    """
    if one.own:
        return -one.effect / (abs(fmean(one.before)) or 1.0)
    if math.isfinite(one.effect):
        return -one.effect
    return begin - fmean(one.after) if math.isfinite(begin) else -fmean(one.after)
