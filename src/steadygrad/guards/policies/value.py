"""Clip every element: what some of the field calls truncation."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from steadygrad.guards.gradients import Decision, Gradients
from steadygrad.guards.norms import local
from steadygrad.guards.policies.checks import positive
from steadygrad.guards.policy import Stateless


@dataclass
class clip_value(Stateless):  # noqa: N801 - reads as a function where it is used
    """Cut every element of every gradient to [-max_value, max_value].

    The direction changes: the largest elements shrink alone. An infinite element is cut, NaN stays
    NaN. Real and imaginary parts of complex gradients are cut each. Equal to
    `torch.nn.utils.clip_grad_value_`.

    **Reference.** Mikolov 2012 (thesis, section 3.2.2): truncation of the gradient's elements.
    """

    max_value: float
    name: str = "clip_value"

    def __post_init__(self) -> None:
        positive("max_value", self.max_value)

    def decide(self, gradients: Gradients) -> Decision:
        """Cut, in place."""
        return Decision(rewrite=self._cut)

    def _cut(self, gradients: Gradients) -> None:
        grads = [local(one.grad) for one in gradients.parameters if one.grad is not None]
        for grad in grads:
            real = torch.view_as_real(grad) if grad.is_complex() else grad
            real.clamp_(-self.max_value, self.max_value)
