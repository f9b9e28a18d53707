"""Residual branches that begin as nothing, or small."""

from __future__ import annotations

import math

from steadygrad.remedies._branches import branches_of
from steadygrad.remedies._draws import scale
from steadygrad.remedies._patch import carry_out, listed
from steadygrad.remedies.remedy import Change, Scene, Unfit, remedy


@remedy("zero-branches", "initialisation", cures=("G205", "G101", "G103", "G403"), size=3)
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
