"""Which steps are sampled: the first ones, then as many as the budget allows."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import median

EARLY = (0, 1, 2, 3, 5, 10, 20, 40)
CLOSEST = 20  # steps between two samples at least, where nothing has happened
BURST = 10  # steps that are sampled after something has
LEAST = 0.25  # of the budget is left to samples, whatever the steady readings take: chosen by us


@dataclass(slots=True)
class Schedule:
    """Samples so rarely that all readings cost no more than `share` of the time of training."""

    share: float
    interval: int = CLOSEST
    _next: int = EARLY[-1] + CLOSEST
    _burst_ends: int = -1
    _plain: deque[float] = field(default_factory=lambda: deque(maxlen=31))  # seconds of a step
    _steady: deque[float] = field(default_factory=lambda: deque(maxlen=31))  # of that, ours
    _sampled: deque[float] = field(default_factory=lambda: deque(maxlen=7))

    def due(self, step: int) -> bool:
        """Whether a step is to be sampled."""
        return step in EARLY or step >= self._next or step < self._burst_ends

    def burst(self, step: int) -> None:
        """Sample the ten steps from this one on."""
        self._burst_ends = step + BURST

    def passed(self, step: int, seconds: float, own: float) -> None:
        """A step has taken so many seconds, of which `own` were ours."""
        if not self.due(step):
            self._plain.append(seconds)
            self._steady.append(own)
            return
        self._sampled.append(seconds)
        if self._plain:
            usual, steady = median(self._plain), median(self._steady)
            extra = max(own - steady, median(self._sampled) - usual)
            left = max(self.share - steady / usual, LEAST * self.share)
            self.interval = max(CLOSEST, math.ceil(extra / (left * usual)))
        if step >= self._next:
            self._next = step + self.interval
