"""Larger epsilons: what keeps a division from exploding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812 - its customary name

from steadygrad.remedies._layers import NORMS
from steadygrad.remedies._parts import Function
from steadygrad.remedies._pass import first_loss
from steadygrad.remedies._patch import carry_out, listed
from steadygrad.remedies.instead import Instead
from steadygrad.remedies.remedy import Change, Scene, Unfit, remedy

LARGER = 1e-4
DIVIDING = (F.normalize, F.cosine_similarity)
FOURTH = 3  # the place of eps among the arguments of both
HALF = 1e-4  # the smallest normal number of float16 is 6.1e-5


@remedy("eps-half", "optimizer", cures=("G005", "G405", "G007"), size=1)
def eps_half(scene: Scene) -> Change:
    """Set the optimizer's eps to 1e-4 where it steps float16 parameters.

    1e-8, the default of Adam and its kin, is zero in float16, so that a parameter without gradient
    is divided by zero.

    **When it fails.** Steps get smaller where gradients are: weights in float32 are the better
    cure.

    **Reference.** IEEE 754-2019, binary16: numbers below 6e-8 are zero. Micikevicius 2018, section
    3.1, for weights in float32.
    """
    groups = [group for group in scene.optimizer.param_groups if "eps" in group]
    half = any(one.dtype is torch.float16 for group in groups for one in group["params"])
    if not half or all(group["eps"] >= HALF for group in groups):
        raise Unfit("The optimizer steps no float16 parameters with a small eps.")
    patch = (
        "for group in optimizer.param_groups:\n"
        '    if "eps" in group:\n'
        f'        group["eps"] = max(group["eps"], {HALF:g})'
    )
    carry_out(scene, patch)
    return Change(patch)


@remedy("larger-eps", "data", cures=("G606", "G007", "G004"), size=1)
def larger_eps(scene: Scene) -> Change:
    """Set the eps of norms, of F.normalize, and of F.cosine_similarity to 1e-4.

    A norm divides the gradient by the root of variance + eps: for an input that does not vary that
    is 1 / sqrt(eps), which goes from 316 to 100. F.normalize divides by its eps itself, 1e-12.

    **When it fails.** What does not vary still carries nothing. A signal below 0.01 comes out
    smaller than without.

    **Reference.** Ioffe & Szegedy 2015, algorithm 1. The value is chosen by us: the root of the
    resolution of float32 is 3e-4.
    """
    names = [
        name
        for name, module in scene.model.named_modules()
        if isinstance(module, NORMS) and isinstance(module.eps, float) and module.eps < LARGER
    ]
    called = _called(scene)
    if not names and not called:
        raise Unfit("No norm, normalize, or cosine of this model has an eps below 1e-4.")
    patch = f"for name in {listed(names)}:\n    model.get_submodule(name).eps = {LARGER:g}"
    carry_out(scene, patch)
    notes = [f"# in the forward pass: F.{one.__name__}(..., eps={LARGER:g})" for one in called]
    return Change(
        "\n".join([*([patch] if names else []), *notes]),
        functions={one: _with_larger(one) for one in called},
        imitates=bool(called),
    )


def _called(scene: Scene) -> list[Function]:
    """The functions with a small eps that a pass calls; none where there can be no pass."""
    met: dict[Function, None] = {}

    def noting(function: Function) -> Function:
        def called(*args: Any, **kwargs: Any) -> Any:
            if _eps(args, kwargs) < LARGER:
                met[function] = None
            return function(*args, **kwargs)

        return called

    if scene.loss is not None:
        with Instead({one: noting(one) for one in DIVIDING}):
            first_loss(scene)
    return list(met)


def _with_larger(function: Function) -> Function:
    def called(*args: Any, **kwargs: Any) -> Any:
        return function(*args[:FOURTH], **{**kwargs, "eps": max(LARGER, _eps(args, kwargs))})

    return called


def _eps(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
    """The eps of a call, 0 where it is the default: it is their fourth argument."""
    return float(args[FOURTH] if len(args) > FOURTH else kwargs.get("eps", 0.0))
