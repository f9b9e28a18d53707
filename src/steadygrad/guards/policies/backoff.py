"""Smaller steps after trouble, for a while."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from steadygrad.guards.gradients import Decision, Gradients
from steadygrad.guards.policies.checks import whole, within
from steadygrad.guards.policy import Event, State


@dataclass
class lr_backoff:  # noqa: N801 - reads as a function where it is used
    """Multiply the learning rate by `factor` at `after` skips in a row, and ramp back up.

    It comes back linearly over `recover` steps that are made. The rates in the optimizer's groups
    are changed within the step only, so that schedulers never see it. Down to `least` at most.
    """

    factor: float = 0.5
    after: int = 1
    recover: int = 100
    least: float = 0.01
    name: str = "lr_backoff"
    _scale: float = field(default=1.0, init=False, repr=False)
    _step: float = field(default=0.0, init=False, repr=False)
    _skips: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        within("factor", self.factor, 0.0, 1.0)
        within("least", self.least, 0.0, 1.0)
        whole("after", self.after, 1)
        whole("recover", self.recover, 1)

    def decide(self, gradients: Gradients) -> Decision:
        """Step at the present share of the learning rate."""
        return Decision(lr=self._scale)

    def observe(self, event: Event) -> None:
        """Go down on skips, and up on steps."""
        if not event.skipped:
            self._skips = 0
            self._scale = min(1.0, self._scale + self._step)
        elif event.by != ("scaler",):
            self._skips += 1
            if self._skips % self.after == 0:
                self._scale = max(self.least, self._scale * self.factor)
                self._step = (1 - self._scale) / self.recover

    def state_dict(self) -> State:
        """Return where the ramp is."""
        return {"scale": self._scale, "step": self._step, "skips": self._skips}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._scale, self._step, self._skips = state["scale"], state["step"], state["skips"]
