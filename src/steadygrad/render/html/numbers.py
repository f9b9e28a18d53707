"""Numbers of a report: said to people, and handed to the page's scripts as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def said(value: float, digits: int = 3) -> str:
    """Say a number in so many significant digits; what is none is said in words."""
    if math.isnan(value):
        return "not read"
    if math.isinf(value):
        return "not finite"
    if value and not 1e-3 <= abs(value) < 1e5:
        mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.{digits}g}" if abs(value) < 10 ** (digits - 1) else f"{value:,.0f}"


def listed(values: Iterable[float]) -> list[float | None]:
    """Return numbers of four digits; null for what was not read or is not finite."""
    return [float(f"{one:.4g}") if math.isfinite(one) else None for one in values]


@dataclass(frozen=True, slots=True)
class Binned:
    """A series of few points, each for a stretch of steps.

    `low`, `middle` and `high` [points] are the least, the median and the largest of what is finite
    there, as in a decimated run; `broken` [points] says where something was not finite.
    """

    low: Floats
    middle: Floats
    high: Floats
    broken: NDArray[np.bool_]

    @property
    def is_wide(self) -> bool:
        """Whether a point stands for more than one value."""
        return bool(np.any(self.high > self.low))


def stretches(steps: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Return where each of at most so many stretches [points] of steps begins.

    Steps are sorted; one of them is never split. Where they are more, stretches are equally long.
    """
    starts = np.flatnonzero(np.diff(steps, prepend=steps[:1] - 1))
    if len(starts) <= most:
        return starts
    ahead = steps[starts] - steps[0]
    bins = ahead * most // (ahead[-1] + 1)
    begun: NDArray[np.int64] = starts[np.diff(bins, prepend=-1) > 0]
    return begun


def zoomable(steps: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Return where stretches begin, half of them equally long, half of them of as many rows.

    Old steps of a long run are coarse: rows stand close where there is more to zoom into.
    """
    starts = np.flatnonzero(np.diff(steps, prepend=steps[:1] - 1))
    if len(starts) <= most:
        return starts
    dense = starts[:: math.ceil(2 * len(starts) / most)]
    return np.union1d(dense, stretches(steps, most // 2))


def binned(values: Floats, starts: NDArray[np.int64]) -> Binned:
    """Bin a series [rows] into the stretches that begin at `starts`."""
    ends = [*starts[1:].tolist(), len(values)]
    points = [_point(values[a:b]) for a, b in zip(starts.tolist(), ends, strict=True)]
    table = np.array([one[:3] for one in points]).reshape(-1, 3)
    low, middle, high = table.T
    return Binned(low, middle, high, np.array([one[3] for one in points], dtype=bool))


def _point(values: Floats) -> tuple[float, float, float, bool]:
    finite = np.sort(values[np.isfinite(values)])
    broken = bool(np.isinf(values).any())
    if not len(finite):
        return math.nan, math.nan, math.nan, broken
    return float(finite[0]), float(finite[(len(finite) - 1) // 2]), float(finite[-1]), broken


def spans_decades(values: Floats, factor: float = 100.0) -> bool:
    """Whether a log axis fits: all positive, and wider than a factor (as in `render.spark`)."""
    read = values[np.isfinite(values)]
    return bool(len(read) and read.min() > 0 and read.max() / read.min() > factor)
