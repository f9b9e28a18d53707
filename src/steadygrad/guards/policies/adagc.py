"""Clip each tensor by the moving average of its own norm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from steadygrad.guards.gradients import Decision, Gradients
from steadygrad.guards.policies.checks import at_least, positive, whole, within
from steadygrad.guards.policies.norm import EPS, clipped_to
from steadygrad.guards.policy import Event, State

Norms = np.ndarray[Any, np.dtype[np.float64]]  # [parameters]


@dataclass
class clip_adagc:  # noqa: N801 - reads as a function where it is used
    """AdaGC: clip each tensor's norm at `relative` times its moving average.

    For the first `warmup` steps all gradients are clipped together at `absolute`, and the averages
    start at the smallest norm seen. They are fed with norms after clipping, and never with one that
    is not finite or of a step that was skipped.

    **Reference.** Wang 2025 (AdaGC), algorithm 1; absolute 1.0, relative 1.05, beta 0.98, 100
    steps.
    """

    relative: float = 1.05
    absolute: float = 1.0
    beta: float = 0.98
    warmup: int = 100
    name: str = "clip_adagc"
    _seen: int = field(default=0, init=False, repr=False)
    _averages: Norms = field(default_factory=lambda: np.zeros(0), init=False, repr=False)

    def __post_init__(self) -> None:
        positive("absolute", self.absolute)
        at_least("relative", self.relative, 1.0)
        within("beta", self.beta, 0.0, 1.0)
        whole("warmup", self.warmup, 1)

    def decide(self, gradients: Gradients) -> Decision:
        """Clip all together at first, and each by its own average later."""
        if self._seen < self.warmup or len(self._averages) != len(gradients.norms):
            return clipped_to(gradients.total, self.absolute)
        norms = gradients.norms
        limits = torch.from_numpy(self.relative * self._averages).to(norms.device)
        above = torch.isfinite(norms) & (norms > limits)
        return Decision(divide_each=torch.where(above, norms / limits, 1.0))

    def observe(self, event: Event) -> None:
        """Move the averages."""
        if event.skipped or event.norms is None:
            return
        norms = event.norms.astype(np.float64)
        if len(self._averages) != len(norms):
            self._averages, self._seen = np.full(len(norms), np.inf), 0
        known = np.isfinite(norms) & (norms > 0)
        averages = self._averages
        if self._seen < self.warmup:
            shrunk = norms / max(1.0, (event.norm + EPS) / self.absolute)
            moved = np.minimum(averages, shrunk)
        else:
            cut = np.minimum(norms, self.relative * averages)
            started = np.isfinite(averages)
            moved = np.where(started, self.beta * averages + (1 - self.beta) * cut, norms)
        self._averages = np.where(known, moved, averages)
        self._seen += 1

    def state_dict(self) -> State:
        """Return the averages."""
        return {"seen": self._seen, "averages": self._averages.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the averages."""
        self._seen, self._averages = state["seen"], np.array(state["averages"], dtype=np.float64)
