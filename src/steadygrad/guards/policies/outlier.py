"""Skip a step whose norm is far outside what is usual."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from steadygrad.guards.gradients import Decision, Gradients
from steadygrad.guards.number import both
from steadygrad.guards.policies.checks import positive, whole
from steadygrad.guards.policies.window import Window
from steadygrad.guards.policy import Event, State


@dataclass
class skip_outlier:  # noqa: N801 - reads as a function where it is used
    """Skip a step whose log norm is `deviations` robust deviations above the median of the last.

    The deviation is 1.4826 times the median absolute deviation of log10 norms over the last
    `window` steps, at least `floor` decades: where all norms are alike, a norm half as large again
    is no outlier. Skipped norms enter the window too, so that a lasting change is accepted after
    half a window; norms that are not finite never do. Silent until half a window is known.

    **Reference.** The rule of six deviations over 128 steps is that of OLMo 2 (2024, section 3.3)
    with mean and deviation replaced by robust ones; log norms as in Chen 2018 (RNMT+, section 3.3).
    """

    deviations: float = 6.0
    window: int = 128
    floor: float = 0.05
    name: str = "skip_outlier"
    _norms: Window = field(init=False, repr=False)

    def __post_init__(self) -> None:
        positive("deviations", self.deviations)
        positive("floor", self.floor)
        whole("window", self.window, 8)
        self._norms = Window(self.window)

    def decide(self, gradients: Gradients) -> Decision:
        """Skip what is above the limit."""
        if 2 * len(self._norms) < self.window:
            return Decision()
        logs = np.array(list(self._norms))
        middle = float(np.median(logs))
        deviation = 1.4826 * float(np.median(np.abs(logs - middle)))
        limit = 10 ** min(middle + self.deviations * max(deviation, self.floor), 300.0)
        above = both(gradients.finite, gradients.total > limit)
        return Decision(skip=above, threshold=limit)

    def observe(self, event: Event) -> None:
        """Keep the log of the norm."""
        self._norms.add(math.log10(event.norm) if event.norm > 0 else math.nan)

    def state_dict(self) -> State:
        """Return the log norms."""
        return {"logs": list(self._norms)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the log norms."""
        self._norms.replace(state["logs"])
