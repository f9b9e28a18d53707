"""Clip at a quantile of the norms seen so far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from steadygrad.guards.gradients import Decision, Gradients
from steadygrad.guards.policies.checks import whole, within
from steadygrad.guards.policies.norm import clipped_to
from steadygrad.guards.policies.window import Window
from steadygrad.guards.policy import Event, State


@dataclass
class clip_quantile:  # noqa: N801 - reads as a function where it is used
    """AutoClip: clip by norm at the `quantile` of the last `history` norms.

    With the authors' 0.1 nine steps of ten are clipped by construction: it sets the size of steps
    rather than guards them. 0.9 and more cut what is unusual. The history is bounded (theirs is
    not), norms that are not finite never enter it, and until `warmup` norms are in, nothing is
    clipped.

    **Reference.** Seetharaman 2020 (AutoClip), section 2: percentile 10 of all norms.
    """

    quantile: float = 0.1
    history: int = 1000
    warmup: int = 10
    name: str = "clip_quantile"
    _norms: Window = field(init=False, repr=False)

    def __post_init__(self) -> None:
        within("quantile", self.quantile, 0.0, 1.0)
        whole("warmup", self.warmup, 1)
        whole("history", self.history, self.warmup)
        self._norms = Window(self.history)

    def decide(self, gradients: Gradients) -> Decision:
        """Clip at the quantile, once enough norms are known."""
        if len(self._norms) < self.warmup:
            return Decision()
        limit = float(np.quantile(list(self._norms), self.quantile))
        return clipped_to(gradients.total, limit) if limit > 0 else Decision()

    def observe(self, event: Event) -> None:
        """Keep the norm as it was before clipping."""
        self._norms.add(event.norm if event.norm > 0 else math.nan)

    def state_dict(self) -> State:
        """Return the norms."""
        return {"norms": list(self._norms)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the norms."""
        self._norms.replace(state["norms"])
