"""Numbers in the data that are NaN or infinite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its customary name

from steadygrad.probe.tree import map_tensors, tensors
from steadygrad.remedies._pass import first_loss, given_to
from steadygrad.remedies.remedy import Change, Scene, Unfit, remedy

PATCH = """\
# x, y = a batch
# bad = ~(torch.isfinite(x).flatten(1).all(1) & torch.isfinite(y).flatten(1).all(1))
# x, y = x[~bad], y[~bad]"""

MOST = 0.5  # of the samples may be left out: chosen by us
REGRESSIONS = (F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss)


@remedy("drop-bad-samples", "data", cures=("G001", "G003"), size=2)
def drop_bad_samples(scene: Scene) -> Change:
    """Leave out samples whose inputs or targets are NaN or infinite, or whose label is masked out.

    In a trial such inputs become zero where the model is called, such targets of a regression
    become what is predicted, which has no gradient, and a label whose score is minus infinity is
    ignored: next to leaving their samples out where these are few.

    **When it fails.** Many samples are bad: what is left is no longer what was to be learned. -inf
    that is a mask becomes zero as well.

    **Reference.** van Buuren 2018, section 1.3.1, on complete cases, and when they deceive.
    """
    if scene.loss is None:
        raise Unfit("The first batch is not known, so that nothing is known of its numbers.")

    shares: list[float] = []

    def note(args: Any, kwargs: Any) -> None:
        shares.extend(_bad_share(one) for one in tensors((args, kwargs)))

    with given_to(scene.model, note):
        first_loss(scene)
    if max(shares, default=0.0) > MOST:
        raise Unfit("Most samples of the first batch hold such numbers: few would be left.")

    def finite(_module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        changed: tuple[Any, Any] = map_tensors((args, kwargs), _zeroed)
        return changed

    scene.model.register_forward_pre_hook(finite, with_kwargs=True)
    functions = {one: _of_finite(one) for one in REGRESSIONS} | {F.cross_entropy: _of_possible}
    return Change(PATCH, functions=functions, imitates=True)


def _bad_share(tensor: Tensor) -> float:
    """The share of samples, along the first axis, that hold a number that is not finite."""
    if not tensor.is_floating_point() or not tensor.dim() or not len(tensor):
        return 0.0
    bad = ~tensor.isfinite().reshape(len(tensor), -1).all(1)
    return float(bad.float().mean())


def _of_finite(function: Callable[..., Any]) -> Callable[..., Any]:
    """A loss of a regression, to which samples without a finite target add nothing."""

    def loss(input: Tensor, target: Tensor, *args: Any, **more: Any) -> Any:
        if target.shape == input.shape:
            target = target.where(target.isfinite(), input.detach())
        return function(input, target, *args, **more)

    return loss


def _of_possible(
    input: Tensor, target: Tensor, weight: Any = None, ignore_index: int = -100, **more: Any
) -> Any:
    """A cross-entropy, to which samples whose own score is minus infinity add nothing."""
    if not target.is_floating_point() and input.dim() == target.dim() + 1:
        scores = input.detach().gather(1, target.clamp_min(0).unsqueeze(1)).squeeze(1)
        target = target.masked_fill(scores == -torch.inf, ignore_index)
    return F.cross_entropy(input, target, weight, ignore_index=ignore_index, **more)


def _zeroed(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    return torch.nan_to_num(tensor, nan=0.0, posinf=0.0, neginf=0.0)
