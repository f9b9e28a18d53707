"""Losses that are given scores instead of probabilities."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its customary name

from steadygrad.remedies._pass import first_loss
from steadygrad.remedies._remember import Remembered
from steadygrad.remedies.instead import Functions, Instead
from steadygrad.remedies.remedy import Change, Scene, Unfit, remedy


@remedy("with-logits", "data", cures=("G303", "G003", "G004"), size=2)
def with_logits(scene: Scene) -> Change:
    """Let the binary cross-entropy work on what goes into the sigmoid, instead of its result.

    Where a sigmoid is 0 or 1 to the last bit its slope is zero, and a wrong sample has no gradient.

    **When it fails.** Something other than a view stands between the sigmoid and the loss, as a
    clamp. The model's output stays a probability here; whoever reads it has to know.

    **Reference.** The formula is that of torch's BCEWithLogitsLoss: the log of a sum of
    exponentials (Blanchard 2021, section 2).
    """
    kept = Remembered()

    def loss(input: Tensor, target: Tensor, weight: Any = None, *_: Any, **more: Any) -> Any:
        known = kept.before(input)
        settings = {"weight": weight, "reduction": more.get("reduction", "mean")}
        if known is None:
            return F.binary_cross_entropy(input, target, **settings)
        scores = known[0].reshape(input.shape)
        return F.binary_cross_entropy_with_logits(scores, target, **settings)

    sigmoids = (torch.sigmoid, Tensor.sigmoid)
    functions = {one: kept.calling(one) for one in sigmoids} | {F.binary_cross_entropy: loss}
    _try(scene, functions, kept, "No binary cross-entropy is given the result of a sigmoid.")
    patch = "loss = F.binary_cross_entropy_with_logits(scores, y)  # scores: before the sigmoid"
    return Change(patch, functions=functions, imitates=True)


@remedy("cross-entropy", "data", cures=("G303", "G411", "G402"), size=2)
def cross_entropy(scene: Scene) -> Change:
    """Give the cross-entropy the scores that went into the softmax before it.

    F.cross_entropy has a softmax of its own; of probabilities it makes nearly equal ones, so that
    the loss cannot fall below ln(1 + (C - 1) / e) and gradients are small. Where the scores are out
    of reach it is given the log of the probabilities, which comes to the same.

    **When it fails.** A softmax over another axis than the classes' is another fault, and left.

    **Reference.** torch's documentation of CrossEntropyLoss: it expects scores; Bridle 1990 for the
    softmax.
    """
    kept = Remembered()

    def loss(input: Tensor, target: Tensor, *args: Any, **more: Any) -> Any:
        known = kept.before(input)
        if known is None or known[1] != _class_axis(known[0]):
            return F.cross_entropy(input, target, *args, **more)
        same = known[0].shape == input.shape
        tiny = torch.finfo(input.dtype).tiny
        scores = known[0] if same else input.clamp_min(tiny).log()
        return F.cross_entropy(scores, target, *args, **more)

    softmaxes = (F.softmax, torch.softmax, Tensor.softmax)
    functions = {one: kept.calling(one, _axis) for one in softmaxes} | {F.cross_entropy: loss}
    _try(scene, functions, kept, "No cross-entropy is given the result of a softmax.")
    patch = "loss = F.cross_entropy(scores, y)  # scores: before the softmax"
    return Change(patch, functions=functions, imitates=True)


@remedy("log-softmax", "data", cures=("G002", "G003", "G004"), size=1)
def log_softmax(scene: Scene) -> Change:
    """Compute the log of a softmax, or of a sigmoid, in one step from what goes into it.

    A probability below 1e-38 is zero, and its log minus infinity; the log of a softmax is a
    difference of scores, which is not.

    **When it fails.** Something other than a view stands between the two, as a clamp or a sum.

    **Reference.** Blanchard 2021 (Accurately computing the log-sum-exp and softmax functions),
    section 2.
    """
    kept = Remembered()

    def log(input: Tensor, *args: Any, **more: Any) -> Any:
        known = kept.before(input)
        if known is None:
            return torch.log(input, *args, **more)
        scores, axis = known
        if axis is None:
            return F.logsigmoid(scores).reshape(input.shape)
        return scores.log_softmax(axis).reshape(input.shape)

    sigmoids = (torch.sigmoid, Tensor.sigmoid)
    softmaxes = (F.softmax, torch.softmax, Tensor.softmax)
    functions: Functions = {
        **{one: kept.calling(one) for one in sigmoids},
        **{one: kept.calling(one, _axis) for one in softmaxes},
        **dict.fromkeys((torch.log, Tensor.log), log),
    }
    _try(scene, functions, kept, "No logarithm is given the result of a softmax or a sigmoid.")
    patch = "log_p = scores.log_softmax(-1)  # or F.logsigmoid(scores)"
    return Change(patch, functions=functions, imitates=True)


def _axis(input: Tensor, dim: int | None = None, *_: Any, **__: Any) -> int:
    return _class_axis(input) if dim is None else dim % input.dim()


def _class_axis(input: Tensor) -> int:
    return 1 if input.dim() > 1 else 0


def _try(scene: Scene, functions: Functions, kept: Remembered, lacking: str) -> None:
    with Instead(functions):
        first_loss(scene)
    if not kept.found:
        raise Unfit(lacking)
    kept.found = 0
