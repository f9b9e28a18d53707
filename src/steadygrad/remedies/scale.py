"""Inputs and targets of the size that networks are made for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its customary name

from steadygrad.remedies._layers import CONVOLUTIONS
from steadygrad.remedies._parts import seen
from steadygrad.remedies._pass import first_loss
from steadygrad.remedies._patch import carry_out, rounded
from steadygrad.remedies.instead import Instead
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

POWERS = {F.mse_loss: 2.0, F.l1_loss: 1.0}
"""Losses of a regression, and the power of a target's unit that they have."""


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

    Both are those of the first batch. F.mse_loss and F.l1_loss are given the standardised target;
    the unit of their losses is then the deviation, or its square.

    **When it fails.** Several losses with targets of different units get one scale. Predictions
    have to be taken back: y = prediction * deviation + mean.

    **Reference.** Bishop 1995 (Neural Networks for Pattern Recognition), section 8.2.
    """
    name, target = _first_target(scene)
    mean, deviation = rounded(float(target.mean())), rounded(float(target.std(correction=0)))
    if not 0 < deviation < float("inf") or (abs(mean) < 0.5 and 0.5 < deviation < 2.0):
        raise Unfit("The targets do not vary, or are standardised already.")

    def standing_in(function: Any) -> Any:
        def loss(input: Tensor, target: Tensor, *args: Any, **more: Any) -> Any:
            return function(input, (target - mean) / deviation, *args, **more)

        return loss

    return Change(
        f"y = (y - {mean:g}) / {deviation:g}  # undo it when predicting",
        functions={one: standing_in(one) for one in POWERS},
        unit=deviation ** POWERS[name],
        imitates=True,
    )


def _first_input(scene: Scene) -> tuple[Tensor, int]:
    """The first argument of the model in a pass, and the axis of its features."""
    given: list[Any] = []

    def note(_: nn.Module, args: tuple[Any, ...]) -> None:
        given.append(args[0] if args else None)

    handle = scene.model.register_forward_pre_hook(note)
    try:
        with seen(scene.model) as spy:
            first_loss(scene)
    finally:
        handle.remove()
    x = given[0] if given else None
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() < 2:
        raise Unfit("The model's first argument is not a batch of floating-point numbers.")
    first = next((part.subject for part in spy.parts if part.kind == "layer"), None)
    return x.detach(), 1 if isinstance(first, CONVOLUTIONS) else -1


def _first_target(scene: Scene) -> tuple[Any, Tensor]:
    """The first regression loss of a pass, and its target."""
    found: list[tuple[Any, Tensor]] = []

    def noting(function: Any) -> Any:
        def loss(input: Tensor, target: Tensor, *args: Any, **more: Any) -> Any:
            found.append((function, target.detach().double()))
            return function(input, target, *args, **more)

        return loss

    functions: Mapping[Any, Any] = {one: noting(one) for one in POWERS}
    with Instead(functions):
        first_loss(scene)
    if not found:
        raise Unfit("The loss is not computed by F.mse_loss or F.l1_loss.")
    return found[0]
