"""Gradients for given cotangents, without the half second that torch takes to check their shapes.

torch.autograd.grad imports sympy as soon as it is given `grad_outputs`. It needs none for a number;
so we make one whose gradients in the roots are the cotangents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def gradients(
    roots: Sequence[Tensor], wanted: Sequence[Tensor], given: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """Pull one cotangent for each root back to the wanted tensors; the graph stays alive.

    Bit for bit what torch.autograd.grad(roots, wanted, given) returns; None where no path leads.
    """
    with torch.enable_grad():
        root: Tensor = _Number.apply(tuple(given), *roots)  # type: ignore[no-untyped-call] # torch's
    return torch.autograd.grad(root, wanted, retain_graph=True, allow_unused=True)


class _Number(torch.autograd.Function):
    """Zero, with given gradients."""

    @staticmethod
    def forward(ctx: Any, given: tuple[Tensor, ...], *roots: Tensor) -> Tensor:  # torch's ctx
        ctx.given = given
        return torch.zeros((), device=roots[0].device)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *ctx.given)
