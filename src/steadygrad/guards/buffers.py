"""Module buffers, which a skipped step must take back too.

A forward pass moves the running statistics of batch norm whatever the optimizer does later: one
infinite batch leaves them infinite for good.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from steadygrad.guards.number import Truth


class Buffers:
    """Copies of a model's buffers as they were at the last step that was made, by name.

    What is written to buffers between two steps from outside, a checkpoint, is taken for the
    forward pass's own: call `accept` after it.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._kept: dict[str, Kept] = {}
        self.accept()

    @torch.no_grad()
    def settle(self, skipped: Truth) -> None:
        """After a step: put the copies back where it was skipped, renew them where it was not."""
        if isinstance(skipped, Tensor) or skipped:
            for name, one in self._model.named_buffers():
                kept = self._kept.get(name)
                if kept is None or kept.copy.shape != one.shape or not kept.may_differ(one):
                    continue
                back = torch.where(skipped, kept.copy, one) if skipped is not True else kept.copy
                one.copy_(back)
        self.accept()

    @torch.no_grad()
    def accept(self) -> None:
        """Copy what the buffers are now."""
        before, self._kept = self._kept, {}
        for name, one in self._model.named_buffers():
            kept = before.get(name)
            if kept is None or kept.copy.shape != one.shape:
                self._kept[name] = Kept(one.detach().clone(), id(one), one._version)
                continue
            if kept.may_differ(one):
                kept.copy.copy_(one)
            self._kept[name] = Kept(kept.copy, id(one), one._version)


@dataclass(frozen=True, slots=True)
class Kept:
    """A copy of a buffer, and which tensor at which version it is a copy of."""

    copy: Tensor
    source: int  # its id
    version: int

    def may_differ(self, one: Tensor) -> bool:
        """Whether a buffer may be another: torch's batch norm does not count what it writes.

        Running statistics are vectors, and cheap; large tables are copied when something counted.
        """
        return one.dim() <= 1 or id(one) != self.source or one._version != self.version
