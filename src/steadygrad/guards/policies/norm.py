"""Clip by the total norm."""

from __future__ import annotations

from dataclasses import dataclass

from steadygrad.guards.gradients import Decision, Gradients
from steadygrad.guards.number import Number, either, is_finite, larger
from steadygrad.guards.policies.checks import positive
from steadygrad.guards.policy import Stateless

EPS = 1e-6  # torch.nn.utils.clip_grad_norm_ adds it to the norm


def clipped_to(total: Number, limit: Number) -> Decision:
    """Divide all gradients so that their total norm is at most `limit`, as torch does.

    The divisor is max(1, (total + 1e-6) / limit), and 1 where the norm is not finite: dividing by
    infinity would make zeros of the finite gradients and NaN of the others.
    """
    above = larger((total + EPS) / limit, 1.0)
    return Decision(divide=either(is_finite(total), above, 1.0), threshold=limit)


@dataclass
class clip_norm(Stateless):  # noqa: N801 - reads as a function where it is used
    """Scale all gradients down together when their total norm is above `max_norm`.

    The direction of the update stays. Equal to `torch.nn.utils.clip_grad_norm_(parameters,
    max_norm)` before the step, for a read of the gradients less.

    **Reference.** Pascanu 2013, section 3.2, algorithm 1.
    """

    max_norm: float
    name: str = "clip_norm"

    def __post_init__(self) -> None:
        positive("max_norm", self.max_norm)

    def decide(self, gradients: Gradients) -> Decision:
        """Divide by how far the norm is above the limit."""
        return clipped_to(gradients.total, self.max_norm)
