"""Clip norms that stand out from their moving average."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from steadygrad.guards.gradients import Decision, Gradients
from steadygrad.guards.number import either, larger
from steadygrad.guards.policies.checks import positive, whole, within
from steadygrad.guards.policies.norm import clipped_to
from steadygrad.guards.policies.window import Window
from steadygrad.guards.policy import Event, State


@dataclass
class clip_zscore:  # noqa: N801 - reads as a function where it is used
    """ZClip: clip a norm g whose z = (g - mean) / std is above `z_threshold`.

    Mean and variance are moving averages of the norms as they are after clipping, with the factor
    `alpha`, started from the first `warmup` norms. A norm above is taken to mean + z_threshold^2 /
    z * std: the further out, the smaller. `max_norm` bounds all (None: nothing does).

    Other than the authors', it takes the median and its absolute deviation to start from, so that a
    spike during the warm-up does not make the deviation large, and norms that are not finite never
    enter.

    **Reference.** Kumar 2025 (ZClip), section 3, algorithm 1; alpha 0.97, z_threshold 2.5, 25
    steps.
    """

    z_threshold: float = 2.5
    alpha: float = 0.97
    warmup: int = 25
    max_norm: float | None = 1.0
    name: str = "clip_zscore"
    _first: Window = field(init=False, repr=False)
    _mean: float = field(default=math.nan, init=False, repr=False)
    _variance: float = field(default=math.nan, init=False, repr=False)

    def __post_init__(self) -> None:
        positive("z_threshold", self.z_threshold)
        within("alpha", self.alpha, 0.0, 1.0)
        whole("warmup", self.warmup, 2)
        if self.max_norm is not None:
            positive("max_norm", self.max_norm)
        self._first = Window(self.warmup)

    def decide(self, gradients: Gradients) -> Decision:
        """Clip what stands out, and what is above max_norm."""
        limit = math.inf if self.max_norm is None else self.max_norm
        if math.isnan(self._mean):
            return clipped_to(gradients.total, limit)
        std = max(math.sqrt(self._variance), 1e-6 * self._mean, 1e-30)
        z = (gradients.total - self._mean) / std
        above = self._mean + self.z_threshold**2 * std / larger(z, self.z_threshold)
        adaptive = either(z > self.z_threshold, above, math.inf)
        return clipped_to(gradients.total, either(adaptive < limit, adaptive, limit))

    def observe(self, event: Event) -> None:
        """Move the averages by the norm after clipping, if it is finite and the step was made."""
        norm = event.norm_after
        if not math.isfinite(norm) or event.skipped:
            return
        if not math.isnan(self._mean):
            self._variance = (
                self.alpha * self._variance + (1 - self.alpha) * (norm - self._mean) ** 2
            )
            self._mean = self.alpha * self._mean + (1 - self.alpha) * norm
            return
        self._first.add(norm)
        if len(self._first) == self.warmup:
            first = np.array(list(self._first))
            self._mean = float(np.median(first))
            # 1.4826 median absolute deviations are a standard deviation of a normal variable
            self._variance = float(1.4826 * np.median(np.abs(first - self._mean))) ** 2

    def state_dict(self) -> State:
        """Return the averages, and the first norms."""
        return {"first": list(self._first), "mean": self._mean, "variance": self._variance}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the averages."""
        self._first.replace(state["first"])
        self._mean, self._variance = state["mean"], state["variance"]
