"""What a policy is shown before a step, and what it may decide."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from steadygrad.guards.number import Number, Truth


@dataclass(frozen=True, slots=True)
class Gradients:
    """The gradients that stand before a step: their norms, and themselves for who must see more.

    `norms` [parameters], float64, are of whole gradients over all ranks, unscaled, after what the
    policies before this one did; 0 where there is no gradient. `total` is the root of the sum of
    their squares. `finite` is false where an element is infinite or NaN. `parameters` and `names`
    are in the order of the norms.
    """

    names: Sequence[str]
    parameters: Sequence[Tensor]
    norms: Tensor
    total: Number
    finite: Truth


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do with the gradients of one step; as it stands, nothing.

    All gradients are divided by `divide`, each by its own of `divide_each` [parameters]; both are
    at least 1. `rewrite` changes gradients in place, where a division can't say it. With `skip` the
    step leaves parameters and optimizer as they are. `threshold` is the norm that was allowed, and
    `lr` what the learning rates are multiplied by in this step.
    """

    divide: Number = 1.0
    divide_each: Tensor | None = None
    rewrite: Callable[[Gradients], None] | None = None
    skip: Truth = False
    threshold: Number = math.inf
    lr: float = 1.0


def checked(decision: object, parameters: int) -> Decision:
    """Return a decision that can be carried out, or raise what is wrong with it.

    On a device the numbers are not looked at, as that would wait for it.
    """
    if not isinstance(decision, Decision):
        raise TypeError(f"decide() must return a Decision, got {decision!r}: return sg.Decision()")
    divide, each, lr = decision.divide, decision.divide_each, decision.lr
    if not isinstance(divide, Tensor) and not divide >= 1:
        raise ValueError(f"Decision(divide) must be at least 1, got {divide}")
    if not 0 <= lr <= 1:
        raise ValueError(f"Decision(lr) is a share of the learning rate, 0 to 1, got {lr}")
    if each is None:
        return decision
    if not isinstance(each, Tensor) or each.shape != (parameters,):
        raise ValueError(f"Decision(divide_each) must be a tensor [{parameters}], got {each!r}")
    if each.device.type == "cpu" and not bool((each >= 1).all()):
        raise ValueError("Decision(divide_each) must be at least 1, got less")
    return decision


def total_of(norms: Tensor, *, read: bool) -> Number:
    """The root of the sum of squares of norms [parameters]: a float where it may be read."""
    total: Tensor = torch.linalg.vector_norm(norms)
    return total.item() if read else total


def divided(gradients: Gradients, decision: Decision) -> Gradients:
    """The gradients as they will be once a decision's divisions are made."""
    norms, total = gradients.norms, gradients.total
    if isinstance(decision.divide, Tensor) or decision.divide != 1:
        norms, total = norms / decision.divide, total / decision.divide
    if decision.divide_each is not None:
        norms = norms / decision.divide_each
        total = total_of(norms, read=not isinstance(gradients.total, Tensor))
    if norms is gradients.norms:
        return gradients
    return replace(gradients, norms=norms, total=total)
