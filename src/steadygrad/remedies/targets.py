"""Losses whose shapes, axes, or weights are not those that were meant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its customary name

from steadygrad.remedies._pass import first_loss
from steadygrad.remedies.instead import Functions, Instead
from steadygrad.remedies.remedy import Change, Scene, Unfit, remedy

Function = Callable[..., Any]
REGRESSIONS: tuple[Function, ...] = (
    F.mse_loss,
    F.l1_loss,
    F.smooth_l1_loss,
    F.huber_loss,
    torch.sub,
    Tensor.sub,
    Tensor.__sub__,
)
SOFTMAXES: tuple[Function, ...] = (
    F.softmax,
    torch.softmax,
    Tensor.softmax,
    F.log_softmax,
    torch.log_softmax,
    Tensor.log_softmax,
)
CLASSIFICATIONS: tuple[Function, ...] = (F.cross_entropy, F.nll_loss)


@remedy("same-shape", "data", cures=("G607",), size=1)
def same_shape(scene: Scene) -> Change:
    """Give targets the shape of the predictions, where both hold equally many values.

    A difference of [n, 1] and [n] has n * n values: each prediction is compared with every target,
    and learns their mean.

    **When it fails.** All pairs are meant, as for a matrix of distances.

    **Reference.** Harris 2020 (Array programming with NumPy), figure 1, for broadcasting.
    """
    fits = _Counted()

    def standing_in(function: Function) -> Function:
        def called(input: Any, target: Any, *args: Any, **more: Any) -> Any:
            if _broadcasts(input, target):
                fits.found += 1
                target = target.reshape(input.shape)
            return function(input, target, *args, **more)

        return called

    functions = {one: standing_in(one) for one in REGRESSIONS}
    _try(scene, functions, fits, "No difference in the loss broadcasts predictions and targets.")
    return Change("y = y.reshape(prediction.shape)", functions=functions, imitates=True)


@remedy("class-axis", "data", cures=("G305",), size=1)
def class_axis(scene: Scene) -> Change:
    """Let the softmax run over the classes, axis 1, where it runs over the samples, axis 0.

    **When it fails.** Samples are meant to compete, as in a contrastive loss.

    **Reference.** torch's documentation of softmax, whose implicit axis has been deprecated since
    2017; Bridle 1990 for the softmax.
    """
    fits = _Counted()

    def standing_in(function: Function) -> Function:
        def called(input: Tensor, *args: Any, **more: Any) -> Any:
            axis = args[0] if args else more.pop("dim", None)
            if input.dim() > 1 and axis is not None and axis % input.dim() == 0:
                fits.found += 1
                axis = 1
            return function(input, axis, *args[1:], **more)

        return called

    functions = {one: standing_in(one) for one in SOFTMAXES}
    _try(scene, functions, fits, "No softmax runs over the first axis.")
    return Change("p = scores.softmax(dim=1)", functions=functions, imitates=True)


@remedy("finite-class-weights", "data", cures=("G003", "G604"), size=1)
def finite_class_weights(scene: Scene) -> Change:
    """Weigh a class with one where its weight is not finite, and all of them where all are zero.

    The inverse of a class's frequency is infinite for a class that the data lack; a loss whose
    weights are all zero is zero, or 0 / 0.

    **When it fails.** Weights are zero on purpose, for a batch that should not count.

    **Reference.** King & Zeng 2001, section 3, for weights by frequency.
    """
    fits = _Counted()

    def standing_in(function: Function) -> Function:
        def called(
            input: Tensor, target: Tensor, weight: Tensor | None = None, *args: Any, **more: Any
        ) -> Any:
            if weight is not None and not bool(weight.any() and weight.isfinite().all()):
                fits.found += 1
                usable = weight.isfinite() & bool(weight.any())
                weight = weight.where(usable, torch.ones_like(weight))
            return function(input, target, weight, *args, **more)

        return called

    functions = {one: standing_in(one) for one in CLASSIFICATIONS}
    _try(scene, functions, fits, "No classes are weighted by numbers that are not finite, or zero.")
    patch = "weight = torch.where(weight.isfinite() & weight.any(), weight, 1.0)"
    return Change(patch, functions=functions, imitates=True)


class _Counted:
    """How often there was something to change."""

    found = 0


def _try(scene: Scene, functions: Functions, fits: _Counted, lacking: str) -> None:
    with Instead(functions):
        first_loss(scene)
    if not fits.found:
        raise Unfit(lacking)


def _broadcasts(input: Any, target: Any) -> bool:
    """Whether two tensors hold equally many values, and their difference more."""
    return (
        isinstance(input, Tensor)
        and isinstance(target, Tensor)
        and input.numel() == target.numel() > 1
        and input.dim() != target.dim()
        and torch.broadcast_shapes(input.shape, target.shape).numel() > input.numel()
    )
