"""How far a step moves the weights, from a sample of each: a copy of all would double the memory.

Of a parameter up to 1024 elements and 1 % of the rest are looked at, evenly spread. Norms are
scaled up to the whole: for the ratio of update to weight, which is read from the same elements, no
scale is needed. Of a sharded parameter this rank's part is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steadygrad.guards.norms import local
from steadygrad.probe.tree import is_signal

WHOLE = 1024
SHARE = 0.01


@dataclass(frozen=True, slots=True)
class Sample:
    """Some elements of every parameter before a step, and which of them have a gradient."""

    parameters: Sequence[Tensor]
    before: list[Tensor]
    pushed: list[Tensor]

    def moves(self) -> dict[str, Tensor]:
        """After the step: `weight`, `update` and `moved` [parameters], float64."""
        weight, update, moved = [], [], []
        for one, before, pushed in zip(self.parameters, self.before, self.pushed, strict=True):
            after = _some(_local(one))
            times = math.sqrt(_local(one).numel() / max(1, before.numel()))
            weight.append(_norm(before) * times)
            update.append(_norm(after.double() - before.double()) * times)
            moved.append(((after != before) & pushed).sum().double() / pushed.sum())
        return {"weight": _stack(weight), "update": _stack(update), "moved": _stack(moved)}


@torch.no_grad()
def sample(parameters: Sequence[Tensor]) -> Sample:
    """Copy some elements of every parameter."""
    before, pushed = [], []
    for one in parameters:
        mine = _some(_local(one)).clone()
        before.append(mine)
        pushed.append(_pushed(one, mine))
    return Sample(parameters, before, pushed)


@torch.no_grad()
def sizes_of(parameters: Sequence[Tensor]) -> Tensor:
    """The norm of each parameter [parameters], float64, from all of its elements."""
    return _stack([_norm(_local(one)) for one in parameters])


@torch.no_grad()
def size_of(parameters: Sequence[Tensor]) -> float:
    """The norm of the elements of all parameters that a sample would look at."""
    norms = [_norm(_some(_local(one))) for one in parameters]
    return float(torch.linalg.vector_norm(_stack(norms)))


def _pushed(parameter: Tensor, like: Tensor) -> Tensor:
    """Which of the elements have a gradient that is not zero."""
    grad = parameter.grad
    if grad is None or not is_signal(parameter):
        return torch.zeros(like.shape, dtype=torch.bool, device=like.device)
    dense = grad.to_dense() if grad.layout is not torch.strided else local(grad)
    found: Tensor = _some(_real(dense)) != 0
    return found


def _local(parameter: Tensor) -> Tensor:
    return _real(local(parameter.detach()))


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _some(tensor: Tensor) -> Tensor:
    """Elements of a tensor, evenly spread: a view where its memory is in one piece."""
    size = tensor.numel()
    stride = _stride(size, tensor.shape[-1] if tensor.dim() else 1)
    return tensor.reshape(-1)[::stride]


def _stride(size: int, width: int) -> int:
    """Every how many elements one is taken; no divisor of a row, lest one column stand for all."""
    wanted = WHOLE + int(SHARE * size)
    stride = max(1, size // wanted)
    while stride > 1 and math.gcd(stride, width) > 1:
        stride += 1
    return stride


def _norm(tensor: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(tensor.double())
    return norm


def _stack(numbers: Sequence[Tensor]) -> Tensor:
    return torch.stack([one.reshape(()) for one in numbers])
