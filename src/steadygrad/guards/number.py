"""Numbers that are floats on the host and 0-d tensors on a device, so that nothing waits for it.

On the CPU a float costs nothing to read, and one may branch on it. On a device, reading stops the
queue: there the same formulas run on tensors, and both branches are computed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

Number = float | Tensor  # a tensor is 0-d, float64
Truth = bool | Tensor  # a tensor is 0-d, bool


def is_finite(number: Number) -> Truth:
    """Whether a number is neither infinite nor NaN."""
    return torch.isfinite(number) if isinstance(number, Tensor) else math.isfinite(number)


def larger(number: Number, floor: float) -> Number:
    """The number, or the floor where that is larger or the number is NaN."""
    if isinstance(number, Tensor):
        return torch.where(number > floor, number, torch.full_like(number, floor))
    return number if number > floor else floor


def either(test: Truth, yes: Number, no: Number) -> Number:
    """One number where the test holds, the other where it does not."""
    if not isinstance(test, Tensor):
        return yes if test else no
    return torch.where(test, _tensor(yes, test), _tensor(no, test))


def negation(test: Truth) -> Truth:
    """Whether a test fails."""
    return ~test if isinstance(test, Tensor) else not test


def both(one: Truth, other: Truth) -> Truth:
    """Whether two tests hold."""
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return one & other
    return one and other


def any_of(one: Truth, other: Truth) -> Truth:
    """Whether one of two tests holds."""
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return one | other
    return one or other


def _tensor(number: Number, like: Tensor) -> Tensor:
    if isinstance(number, Tensor):
        return number
    return torch.full((), number, dtype=torch.float64, device=like.device)
