"""The norms that the user's own clipping computes, and throws away: kept until the step."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from steadygrad.guards.norms import norms_of
from steadygrad.guards.number import Number
from steadygrad.taps.number import number_of

EXACT = (torch.float32, torch.float64)  # of half precision torch's norms are half precision too
PLAIN = (Tensor, torch.nn.Parameter)
TINY = 1e-6  # what torch adds to the norm before it divides by it


@dataclass(slots=True)
class Measured:
    """The norms of some gradients [gradients], before they were clipped to `max_norm`.

    `after` is the norm of all that is left after clipping element by element.
    """

    gradients: list[Tensor]
    norms: Tensor
    total: Number
    scaled: bool = False  # by the scale of a loss
    max_norm: float = math.inf
    after: Number | None = None

    @property
    def factor(self) -> Number:
        """What the clipping multiplies these gradients by."""
        if math.isinf(self.max_norm):
            return 1.0
        if isinstance(self.total, Tensor):
            return (self.max_norm / (self.total + TINY)).clamp(max=1.0)
        return min(1.0, self.max_norm / (self.total + TINY)) if self.total >= 0 else math.nan


@dataclass(slots=True)
class Order:
    """How often clipping came at a time when it could do nothing, and where."""

    calls: int = 0
    after_step: int = 0
    before_backward: int = 0
    before_unscale: int = 0
    line: tuple[str, int] = ("", 0)


@dataclass(slots=True)
class Clips:
    """What was clipped since the last step. `order` and `seconds` are of the whole run.

    The seconds are those of norms that torch would have computed, had they not been given to it.
    """

    measured: list[Measured] = field(default_factory=list)
    order: Order = field(default_factory=Order)
    seconds: float = 0.0

    def measure(self, gradients: Sequence[Tensor], *, scaled: bool) -> Tensor | None:
        """Return torch's own norm of gradients, and keep those that it is made of."""
        if not _is_uniform(gradients):
            if gradients and all(type(one) in PLAIN for one in gradients):
                kept = [one for one in gradients if one.layout is torch.strided]
                self._keep(kept, norms_of(kept), None, scaled=scaled)
            return None
        begin = time.perf_counter()
        norms = torch.stack(torch._foreach_norm(list(gradients), 2.0))  # as torch does, bit by bit
        total: Tensor = torch.linalg.vector_norm(norms, 2.0)
        self.seconds += time.perf_counter() - begin
        self._keep(gradients, norms.double(), total, scaled=scaled)
        return total

    def keep(self, gradients: Sequence[Tensor], norms: Tensor) -> None:
        """Keep norms that were read elsewhere, over all ranks."""
        self._keep(gradients, norms, None, scaled=False)

    def _keep(
        self, gradients: Sequence[Tensor], norms: Tensor, total: Tensor | None, *, scaled: bool
    ) -> None:
        if total is None:
            total = torch.linalg.vector_norm(norms)
        self.measured.append(Measured(list(gradients), norms, number_of(total), scaled))

    def clip(self, max_norm: float) -> None:
        """The gradients that were measured last are being clipped."""
        if self.measured:
            self.measured[-1].max_norm = max_norm

    def cut(self, gradients: Sequence[Tensor]) -> None:
        """The gradients that were measured last have been clipped element by element."""
        plain = all(type(one) in PLAIN and one.layout is torch.strided for one in gradients)
        if self.measured and plain and len(gradients) == len(self.measured[-1].gradients):
            self.measured[-1].after = number_of(torch.linalg.vector_norm(norms_of(gradients)))

    def forget(self) -> None:
        """Let go of the gradients: they have been used, or are about to change."""
        self.measured = []

    def of(self, gradients: Sequence[Tensor | None]) -> Measured | None:
        """What was measured of exactly these gradients; None where some were not."""
        wanted = [one for one in gradients if one is not None]
        for one in self.measured:
            if len(one.gradients) == len(wanted) and all(
                mine is theirs for mine, theirs in zip(one.gradients, wanted, strict=True)
            ):
                return one
        return self._joined(wanted) if self.measured else None

    def _joined(self, wanted: Sequence[Tensor]) -> Measured | None:
        """Several clippings, of parts, as if they had been one; its factor is that of the first."""
        places = {
            id(gradient): (part, place)
            for part in self.measured
            for place, gradient in enumerate(part.gradients)
        }
        found = [places.get(id(one)) for one in wanted]
        if not found or None in found:
            return None
        known = [one for one in found if one is not None]
        norms = torch.stack([part.norms[place] for part, place in known])
        total = number_of(torch.linalg.vector_norm(norms))
        first = known[0][0]
        alone = all(part is first for part, _ in known)
        whole = first.total if alone else total
        return Measured(list(wanted), norms, whole, first.scaled, first.max_norm)


def _is_uniform(gradients: Sequence[Tensor]) -> bool:
    """Whether torch's clipping would make one call for all, in a precision that is ours too."""
    if not gradients:
        return False
    device, dtype = gradients[0].device, gradients[0].dtype
    if dtype not in EXACT or device.type not in ("cpu", "cuda"):
        return False
    return all(
        type(one) in PLAIN
        and one.dtype is dtype
        and one.device == device
        and one.layout is torch.strided
        for one in gradients
    )
