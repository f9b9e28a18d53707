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
BINARY: tuple[Function, ...] = (F.binary_cross_entropy, F.binary_cross_entropy_with_logits)
TOTAL = 0.05  # how far from one exponentials may sum to, in bfloat16
TINY = 1e-12
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
    patch = "y = y.reshape(prediction.shape)"
    return Change(patch, functions=functions, own=True, imitates=True)


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
    return Change("p = scores.softmax(dim=1)", functions=functions, own=True, imitates=True)


@remedy("unit-targets", "data", cures=("G603",), size=1)
def unit_targets(scene: Scene) -> Change:
    """Divide the targets of a binary cross-entropy by their largest value: 0 and 255 to 0 and 1.

    For a target beyond 1 the loss has no lower bound, and training follows it to minus infinity.

    **When it fails.** The first batch lacks the largest value. Class numbers are no masks: they
    need one channel each.

    **Reference.** torch's documentation of BCEWithLogitsLoss: targets lie between 0 and 1;
    pytorch#2623 (2017).
    """
    found: list[float] = []

    def noting(function: Function) -> Function:
        def called(input: Tensor, target: Tensor, *args: Any, **more: Any) -> Any:
            if float(target.min()) >= 0 and float(target.max()) > 1:
                found.append(float(target.max()))
            return function(input, target, *args, **more)

        return called

    with Instead({one: noting(one) for one in BINARY}):
        first_loss(scene)
    if not found:
        raise Unfit("No binary cross-entropy is given targets from zero to more than one.")
    largest = max(found)

    def standing_in(function: Function) -> Function:
        def called(input: Tensor, target: Tensor, *args: Any, **more: Any) -> Any:
            return function(input, target / largest, *args, **more)

        return called

    functions = {one: standing_in(one) for one in BINARY}
    return Change(f"y = y / {largest:g}", functions=functions, own=True, imitates=True)


@remedy("log-probabilities", "data", cures=("G603",), size=1)
def log_probabilities(scene: Scene) -> Change:
    """Give nll_loss the log-softmax of the scores, where it is given scores.

    nll_loss picks the number at each label and takes it for a log-probability: of scores that is a
    loss without a lower bound.

    **When it fails.** A plain selection of scores is meant. Given are probabilities: then their log
    is taken.

    **Reference.** torch's documentation of NLLLoss and CrossEntropyLoss (Paszke 2019).
    """
    fits = _Counted()

    def loss(input: Tensor, target: Tensor, *args: Any, **more: Any) -> Any:
        axis = 1 if input.dim() > 1 else 0
        total = input.detach().float().logsumexp(axis)
        if bool((total.abs() > TOTAL).any()):
            fits.found += 1
            shares = bool((input >= 0).all() and ((input.sum(axis) - 1).abs() < TOTAL).all())
            input = input.clamp_min(TINY).log() if shares else input.log_softmax(axis)
        return F.nll_loss(input, target, *args, **more)

    functions: Functions = {F.nll_loss: loss}
    _try(scene, functions, fits, "No nll_loss is given anything but log-probabilities.")
    patch = "loss = F.cross_entropy(scores, y)  # scores: before any softmax"
    return Change(patch, functions=functions, own=True, imitates=True)


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
    return Change(patch, functions=functions, own=True, imitates=True)


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
