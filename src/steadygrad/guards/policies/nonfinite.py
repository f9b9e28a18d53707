"""Skip a step whose gradients are not numbers."""

from __future__ import annotations

from dataclasses import dataclass

from steadygrad.guards.gradients import Decision, Gradients
from steadygrad.guards.number import negation
from steadygrad.guards.policy import Stateless


@dataclass
class skip_nonfinite(Stateless):  # noqa: N801 - reads as a function where it is used
    """Leave parameters and optimizer as they are when a gradient holds an infinity or a NaN.

    `clip_grad_norm_` does not help there: one NaN makes every gradient NaN, one infinity makes all
    others zero. Finite gradients whose squares sum beyond float32 are clipped, not skipped.
    """

    name: str = "skip_nonfinite"

    def decide(self, gradients: Gradients) -> Decision:
        """Skip what is not finite."""
        return Decision(skip=negation(gradients.finite))
