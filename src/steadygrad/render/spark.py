"""Draw a series in one line: a bar for each stretch of steps."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from steadygrad.render.words import Glyphs

BARS, ASCII_BARS = "▁▂▃▄▅▆▇█", ".:-=+*#@"
WIDE = 100.0  # ratio of largest to smallest from which bars grow with the logarithm


def spark(series: NDArray[np.float64], cells: int, glyphs: Glyphs) -> str:
    """Draw a series [steps], oldest first, in at most so many cells.

    A cell is the mean of its stretch, blank where nothing was read, and the sign of what is broken
    where anything was infinite. Bars grow with the logarithm where the series is positive and spans
    more than a factor of 100.
    """
    stretches = np.array_split(series, min(cells, len(series))) if len(series) else []
    means = np.array([_mean(stretch) for stretch in stretches])
    read = means[np.isfinite(means)]
    if read.size and read.min() > 0 and read.max() / read.min() > WIDE:
        means, read = np.log(means), np.log(read)
    low, high = read.min(initial=np.inf), read.max(initial=-np.inf)
    return "".join(_cell(value, low, high, glyphs) for value in means)


def _mean(stretch: NDArray[np.float64]) -> float:
    read = stretch[~np.isnan(stretch)]
    if np.isinf(read).any():
        return math.inf
    return float(read.mean()) if read.size else math.nan


def _cell(value: float, low: float, high: float, glyphs: Glyphs) -> str:
    if not math.isfinite(value):
        return " " if math.isnan(value) else glyphs.severity[-1]
    bars = ASCII_BARS if glyphs.ascii else BARS
    share = (value - low) / (high - low) if high > low else 0.0
    return bars[min(int(share * len(bars)), len(bars) - 1)]
