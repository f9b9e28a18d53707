"""The loss of a step: the sum of what its backward passes started on, as it was before scaling."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from steadygrad.guards.number import Number
from steadygrad.taps.number import number_of


class Losses:
    """Adds up the losses between two steps. On a device the sum is a tensor, and nobody waits."""

    def __init__(self) -> None:
        self._scaled: list[tuple[weakref.ref[Tensor], Tensor]] = []
        self.total: Number = 0.0
        self.backwards = 0
        self.roots: list[tuple[Tensor, Tensor | None]] = []
        self._used = False
        self.scaled = False  # whether the last backward pass began on a scaled loss

    def note_scaling(self, loss: Tensor, scaled: Tensor) -> None:
        """Keep a loss until the tensor that it was scaled to is gone."""
        alive = [pair for pair in self._scaled if pair[0]() is not None]
        self._scaled = [*alive, (weakref.ref(scaled), loss)]

    def add(self, roots: Sequence[Tensor], weights: Sequence[Tensor | None]) -> Number:
        """Add what one backward pass starts on, and return it."""
        if self._used:
            self.total, self.backwards, self._used = 0.0, 0, False
        value: Number = 0.0
        with torch._C.DisableTorchFunction():
            for root, weight in zip(roots, weights, strict=True):
                loss = self._unscaled(root)
                self.scaled = loss is not root
                value = value + _value(loss.detach(), weight)
                self.roots.append((loss, weight))
        self.total = self.total + value
        self.backwards += 1
        return value

    def used(self) -> None:
        """A step was made of them: the next backward pass begins anew. Lets go of their graphs."""
        self._used = True
        self.roots, self._scaled = [], []

    def _unscaled(self, root: Tensor) -> Tensor:
        return next((loss for scaled, loss in self._scaled if scaled() is root), root)


def _value(loss: Tensor, weight: Tensor | None) -> Number:
    if weight is not None and loss.dim():
        loss = (loss * weight.detach()).sum()
    return number_of(loss if loss.dim() == 0 else loss.sum())
