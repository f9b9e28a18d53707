"""Module buffers, which a skipped step must take back too.

A forward pass moves the running statistics of batch norm whatever the optimizer does later: one
infinite batch leaves them infinite for good.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from steadygrad.guards.number import Truth


class Buffers:
    """Copies of a model's buffers as they were at the last step that was made."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._kept: dict[int, tuple[Tensor, Tensor, int]] = {}  # buffer, copy, version copied
        self._accept()

    @torch.no_grad()
    def settle(self, skipped: Truth) -> None:
        """After a step: put the copies back where it was skipped, renew them where it was not."""
        if isinstance(skipped, Tensor):
            for one, copy, version in self._kept.values():
                if _may_have_changed(one, version):
                    one.copy_(torch.where(skipped, copy, one))
        elif skipped:
            for one, copy, version in self._kept.values():
                if _may_have_changed(one, version):
                    one.copy_(copy)
        self._accept()

    @torch.no_grad()
    def _accept(self) -> None:
        kept = self._kept
        self._kept = {}
        for one in self._model.buffers():
            _, copy, version = kept.get(id(one), (one, None, -1))
            if copy is None or copy.shape != one.shape:
                copy = one.detach().clone()
            elif _may_have_changed(one, version):
                copy.copy_(one)
            self._kept[id(one)] = (one, copy, one._version)


def _may_have_changed(one: Tensor, version: int) -> bool:
    """Whether a buffer is another than at a version: torch's batch norm does not count its own.

    Running statistics are vectors, and cheap; large tables are copied when something counted up.
    """
    return one.dim() <= 1 or one._version != version
