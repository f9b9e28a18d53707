"""Inputs and targets of the size that networks are made for."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its customary name

from steadygrad.probe.spy import BY_HAND, Heard, Spy
from steadygrad.probe.trace import listen
from steadygrad.remedies._layers import CONVOLUTIONS
from steadygrad.remedies._parts import seen
from steadygrad.remedies._pass import first_loss, given_to
from steadygrad.remedies._patch import carry_out, rounded
from steadygrad.remedies.remedy import Change, Scene, Unfit, remedy

PATCH = """\
def standardised(module, args, known={{}}):  # better: with the statistics of the training set
    x = args[0]
    if not known:
        axes = [axis for axis in range(x.dim()) if axis != {axis} % x.dim()]
        mean, deviation = x.mean(axes, keepdim=True), x.std(axes, correction=0, keepdim=True)
        known["mean"] = mean.detach()
        known["deviation"] = deviation.where(deviation > 1e-6 * mean.abs(), 1.0).detach()
    return ((x - known["mean"]) / known["deviation"], *args[1:])
model.register_forward_pre_hook(standardised)"""

LOSSES = (F.mse_loss, F.l1_loss)
DIFFERENCES = (Tensor.sub, torch.sub)
HEARD = (*(one.__name__ for one in LOSSES), BY_HAND)
"""Losses of a regression: torch's, what one that is written by hand consists of, their names."""


@remedy("standardise", "data", cures=("G601", "G202", "G302", "G301"), size=2)
def standardise(scene: Scene) -> Change:
    """Subtract the mean of the model's inputs and divide by their deviation, from the first batch.

    Statistics are those of each channel where a convolution comes first, else of each feature; one
    that does not vary in the batch is only shifted. Only the first argument, where it is a float
    tensor, is changed.

    **When it fails.** The first batch is small or unlike the others: statistics belong to the
    training set. Zeros that mean "not there" do no longer.

    **Reference.** LeCun 1998 (Efficient BackProp), section 4.3.
    """
    given, axis = _first_input(scene)
    mean, deviation = float(given.double().mean()), float(given.double().std())
    if abs(mean) < 0.5 and 0.5 < deviation < 2.0:
        raise Unfit("The inputs have a mean near 0 and a deviation near 1 already.")
    patch = PATCH.format(axis=axis)
    carry_out(scene, patch)
    return Change(patch)


@remedy("standardise-target", "data", cures=("G602", "G401"), size=2)
def standardise_target(scene: Scene) -> Change:
    """Subtract the mean of a regression's targets and divide by their deviation, once and for all.

    Both are those of the first batch. F.mse_loss and F.l1_loss are given the standardised target,
    or, where the loss squares a difference by hand, every difference between what has a gradient
    and what has none; the unit of the loss is then the deviation, or its square.

    **When it fails.** Several losses with targets of different units get one scale. Predictions
    have to be taken back: y = prediction * deviation + mean.

    **Reference.** Bishop 1995 (Neural Networks for Pattern Recognition), section 8.2.
    """
    heard = _first_regression(scene)
    target = heard.arguments["target"].detach().double()
    mean, deviation = rounded(float(target.mean())), rounded(float(target.std(correction=0)))
    if not 0 < deviation < float("inf") or (abs(mean) < 0.5 and 0.5 < deviation < 2.0):
        raise Unfit("The targets do not vary, or are standardised already.")

    def loss(function: Any, input: Tensor, target: Tensor, *args: Any, **more: Any) -> Any:
        return function(input, (target - mean) / deviation, *args, **more)

    def difference(function: Any, one: Any, other: Any, **more: Any) -> Any:
        if _are_input_and_target(one, other):
            other = (other - mean) / deviation
        elif _are_input_and_target(other, one):
            one = (one - mean) / deviation
        return function(one, other, **more)

    standing_in, functions = (difference, DIFFERENCES) if heard.name == BY_HAND else (loss, LOSSES)
    return Change(
        f"y = (y - {mean:g}) / {deviation:g}  # undo it when predicting",
        functions={one: partial(standing_in, one) for one in functions},
        unit=deviation ** _power(heard),
        imitates=True,
    )


def _first_input(scene: Scene) -> tuple[Tensor, int]:
    """The first argument of the model in a pass, and the axis of its features."""
    given: list[Any] = []

    def note(args: tuple[Any, ...], _: Any) -> None:
        given.append(args[0] if args else None)

    with given_to(scene.model, note), seen(scene.model) as spy:
        first_loss(scene)
    x = given[0] if given else None
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() < 2:
        raise Unfit("The model's first argument is not a batch of floating-point numbers.")
    first = next((part.subject for part in spy.parts if part.kind == "layer"), None)
    return x.detach(), 1 if isinstance(first, CONVOLUTIONS) else -1


def _first_regression(scene: Scene) -> Heard:
    """The first regression loss of a pass."""
    spy = Spy()
    with listen(scene.model, spy):
        first_loss(scene)
    found = next((one for one in spy.heard if one.name in HEARD), None)
    if found is None:
        raise Unfit("The loss is neither F.mse_loss nor F.l1_loss, nor the square of a difference.")
    return found


def _power(heard: Heard) -> int:
    """The power of the target's unit that a loss has."""
    given, target = heard.arguments["input"].detach(), heard.arguments["target"]
    by_hand = heard.name == BY_HAND and torch.equal(heard.out.detach(), (given - target).abs())
    return 1 if by_hand or heard.name == "l1_loss" else 2


def _are_input_and_target(one: Any, other: Any) -> bool:
    """Whether two tensors of one shape are what is trained, and what it is to be like."""
    if not (isinstance(one, Tensor) and isinstance(other, Tensor)) or one.shape != other.shape:
        return False
    return one.requires_grad and other.is_floating_point() and not other.requires_grad
