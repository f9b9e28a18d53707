"""Module buffers, which a skipped step must take back too.

A forward pass moves the running statistics of batch norm whatever the optimizer does later: one
infinite batch leaves them infinite for good.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from steadygrad.guards.number import Truth


class Buffers:
    """Copies of a model's buffers as they were at the last step that was made."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._kept = [(one, one.detach().clone(), one._version) for one in self._all()]

    def accept(self) -> None:
        """Take what the buffers are now."""
        kept = {id(one): (copy, version) for one, copy, version in self._kept}
        self._kept = [self._renewed(one, kept.get(id(one))) for one in self._all()]

    def restore(self, skipped: Truth) -> None:
        """Put back the copies where the step was skipped, take the present values elsewhere."""
        if isinstance(skipped, Tensor):
            self._choose(skipped)
            self.accept()
        elif skipped:
            with torch.no_grad():
                for one, copy, version in self._kept:
                    if one._version != version:
                        one.copy_(copy)
            self._kept = [(one, copy, one._version) for one, copy, _ in self._kept]
        else:
            self.accept()

    def _choose(self, skipped: Tensor) -> None:
        with torch.no_grad():
            for one, copy, version in self._kept:
                if one._version != version:
                    one.copy_(torch.where(skipped, copy, one))

    def _all(self) -> Iterator[Tensor]:
        return self._model.buffers()

    def _renewed(self, one: Tensor, kept: tuple[Tensor, int] | None) -> tuple[Tensor, Tensor, int]:
        if kept is None or kept[0].shape != one.shape:
            return one, one.detach().clone(), one._version
        if kept[1] != one._version:
            kept[0].copy_(one.detach())
        return one, kept[0], one._version
