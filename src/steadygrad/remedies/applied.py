"""Several remedies at once, in an order in which each sees what those before it have done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from steadygrad.remedies.catalogue import REMEDIES
from steadygrad.remedies.instead import Instead
from steadygrad.remedies.remedy import Change, Loss, Remedy, Scene

ORDER = (
    "wiring",
    "data",
    "activation",
    "normalisation",
    "architecture",
    "initialisation",
    "step",
    "guard",
    "optimizer",
)
"""Weights are drawn for the activations that they will feed; the optimizer comes last, as it is
given new parameters, and steps with the rates and gradients that the others have left."""

BY_NAME = {one.name: one for one in REMEDIES}


class Applied:
    """Remedies that have been applied to a training; raises Unfit where one does not fit."""

    def __init__(self, remedies: Sequence[Remedy], scene: Scene) -> None:
        self.functions: dict[Callable[..., Any], Callable[..., Any]] = {}
        self._changes: list[Change] = []
        for one in ordered(remedies):
            given = replace(scene, loss=_under(self.functions, scene.loss))
            change = one.apply(given)
            self._changes.append(change)
            self.functions |= change.functions

    @property
    def patch(self) -> str:
        """The lines to paste, in the order in which they act."""
        return "\n".join(one.patch for one in self._changes if one.patch)

    @property
    def imitates(self) -> bool:
        """Whether the patch only comes to what was done."""
        return any(one.imitates for one in self._changes)

    @property
    def own(self) -> bool:
        """Whether the loss is another one than the unchanged training's."""
        return any(one.own for one in self._changes)

    @property
    def unit(self) -> float:
        """What losses are to be multiplied by, to be compared with the unchanged training's."""
        unit = 1.0
        for one in self._changes:
            unit *= one.unit
        return unit

    def before(self, optimizer: Optimizer, step: int) -> None:
        """Do what is to be done before a step."""
        for one in self._changes:
            if one.before is not None:
                one.before(optimizer, step)

    def after(self, optimizer: Optimizer, step: int) -> None:
        """Do what is to be done after a step, the last first."""
        for one in reversed(self._changes):
            if one.after is not None:
                one.after(optimizer, step)


def ordered(remedies: Sequence[Remedy]) -> list[Remedy]:
    """In the order in which they are to be applied."""
    return sorted(remedies, key=lambda one: ORDER.index(one.kind))


def _under(
    functions: dict[Callable[..., Any], Callable[..., Any]], loss: Loss | None
) -> Loss | None:
    """The loss as it is computed with other functions."""
    if loss is None or not functions:
        return loss

    def changed(model: nn.Module) -> Tensor:
        with Instead(functions):
            return loss(model)

    return changed
