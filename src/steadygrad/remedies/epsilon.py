"""Larger epsilons: what keeps a division from exploding."""

from __future__ import annotations

import torch

from steadygrad.remedies._layers import NORMS
from steadygrad.remedies._patch import carry_out, listed
from steadygrad.remedies.remedy import Change, Scene, Unfit, remedy

LARGER = 1e-4
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


@remedy("larger-eps", "data", cures=("G605", "G004", "G101"), size=1)
def larger_eps(scene: Scene) -> Change:
    """Set the eps of norms to 1e-4.

    A norm divides the gradient by the root of variance + eps: for an input that does not vary that
    is 1 / sqrt(eps), which goes from 316 to 100.

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
    if not names:
        raise Unfit("This model has no norm of torch's with an eps below 1e-4.")
    patch = f"for name in {listed(names)}:\n    model.get_submodule(name).eps = {LARGER:g}"
    carry_out(scene, patch)
    return Change(patch)
