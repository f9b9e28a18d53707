"""Whether a gradient norm is far above those before it."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import median

WINDOW = 128  # steps
LEAST = 32  # steps without which nothing is called usual
FRESH = 8  # steps after which what is usual is reckoned anew
TIMES = math.log10(4)  # how far above at least: chosen by us
SPREADS = 6.0  # and by how many deviations, estimated from the median one


@dataclass(slots=True)
class Jumps:
    """The logarithms of the last norms, and the limit that follows from them."""

    _logs: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _limit: float = math.inf
    _age: int = 0

    def is_one(self, norm: float) -> bool:
        """Whether this norm jumps; it is one of those before the next."""
        log = math.log10(norm) if 0 < norm < math.inf else math.nan
        jumps = log > self._limit
        if math.isfinite(log):
            self._logs.append(log)
            self._age += 1
        if len(self._logs) >= LEAST and self._age >= FRESH:
            self._age = 0
            middle = median(self._logs)
            spread = 1.4826 * median(abs(one - middle) for one in self._logs)
            self._limit = middle + max(TIMES, SPREADS * spread)
        return jumps
