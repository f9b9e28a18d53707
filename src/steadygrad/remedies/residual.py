"""Residual connections, and branches that begin as nothing, or small."""

from __future__ import annotations

import math
from collections.abc import Sequence

from steadygrad.remedies._branches import branches_of
from steadygrad.remedies._draws import scale
from steadygrad.remedies._layers import layers_of, pointed_at
from steadygrad.remedies._parts import Part, parts_of
from steadygrad.remedies._patch import carry_out, listed, rounded
from steadygrad.remedies.remedy import Change, Scene, Unfit, remedy

FEWEST = 3
"""Layers that a skip is put around, at least: fewer do not need one."""


@remedy("add-residual", "architecture", cures=("G102", "G104", "G201", "G103", "G105"), size=4)
def add_residual(scene: Scene) -> Change:
    """Add to each hidden layer's output its input: x + f(x) / sqrt(L), around L layers.

    Around layers of a plain chain whose output has the shape of their input: those the finding
    points at, or all. The root of L keeps the sum of all branches about as large as one of them.

    **When it fails.** What a layer does is one of many now: a network whose first layers were never
    reached has to be trained longer. A shape that changes needs a projection, and has none here.

    **Reference.** He 2016 (Deep Residual Learning), section 3.2; Hayou 2021 (Stable ResNet),
    section 3, for the factor.
    """
    try:
        branches = branches_of(scene)
    except Unfit:
        branches = []
    if branches:
        raise Unfit("This model has residual connections already.")
    plain = _plain(parts_of(scene))
    layers = {name: one for name, one in layers_of(scene.model).items() if name in plain and name}
    chosen = pointed_at(scene, layers)
    if len(chosen) < FEWEST:
        raise Unfit("This model has no chain of layers whose output has the shape of their input.")
    share = rounded(1 / math.sqrt(len(chosen)), 3)
    patch = (
        f"for name in {listed(chosen)}:\n    layer = model.get_submodule(name)\n"
        f"    layer.register_forward_hook(lambda _, args, out: args[0] + {share:g} * out)"
    )
    carry_out(scene, patch)
    return Change(patch)


def _plain(parts: Sequence[Part]) -> set[str]:
    """Layers that are called once, alone take in what is before them, and keep its shape."""
    calls = [part.name for part in parts if part.kind == "layer"]
    return {
        part.name
        for part in parts
        if part.kind == "layer"
        and calls.count(part.name) == 1
        and part.entered is not None
        and tuple(part.entered.shape) == part.shape
        and len(part.before) == 1
        and len(part.before[0].after) == 1
    }


@remedy("zero-branches", "initialisation", cures=("G205", "G101", "G103", "G403", "G007"), size=3)
def zero_branches(scene: Scene) -> Change:
    """Zero the last layer of each residual branch, so that every block begins as the identity.

    Where a norm ends the branch, its weight and bias are zeroed and the layer before is left alone:
    a norm behind a zero layer would divide by its eps. Branches are found in the autograd graph of
    the first batch; blocks with a projected skip are left as they are.

    **When it fails.** At the first step only the last layers of the branches get a gradient. A
    branch that ends in a product, as a gate, is not recognised.

    **Reference.** Goyal 2017, section 5.1 (zero gamma); Zhang 2019 (Fixup), section 3; De & Smith
    2020 (SkipInit) and Bachlechner 2020 (ReZero) multiply by a scalar that begins at zero instead.
    """
    names = [name for branch in branches_of(scene) for name in branch]
    if not any(bool(scene.model.get_parameter(name).any()) for name in names):
        raise Unfit("All residual branches of this model begin at zero already.")
    patch = f"for name in {listed(names)}:\n    nn.init.zeros_(model.get_parameter(name))"
    carry_out(scene, patch)
    return Change(patch)


@remedy("depth-scaled-residual", "initialisation", cures=("G205", "G101", "G103", "G403"), size=2)
def depth_scaled_residual(scene: Scene) -> Change:
    """Divide the last layer of each residual branch by the root of the number of branches.

    The sum of all branches then has about the size of one. Branches are found in the autograd graph
    of the first batch.

    **When it fails.** Branches that end in a norm get small in the same way, though their weights
    may be exempt from decay. Applied twice it makes branches too small; GPT-2's own initialisation
    has it already.

    **Reference.** Radford 2019 (GPT-2), section 2.3: 1 / sqrt(N) for N residual layers.
    """
    branches = branches_of(scene)
    factor = 1 / math.sqrt(len(branches))
    names = [name for branch in branches for name in branch]
    if not any(bool(scene.model.get_parameter(name).any()) for name in names):
        raise Unfit("All residual branches of this model begin at zero.")
    patch = scale(dict.fromkeys(names, factor))
    carry_out(scene, patch)
    return Change(patch)
