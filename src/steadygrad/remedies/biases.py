"""Zero the biases."""

from __future__ import annotations

from torch import nn

from steadygrad.remedies._layers import KINDS, NORMS
from steadygrad.remedies._patch import carry_out, listed
from steadygrad.remedies.remedy import Change, Scene, Unfit, remedy


@remedy("zero-bias", "initialisation", cures=("G202", "G301", "G302", "G105"), size=2)
def zero_bias(scene: Scene) -> Change:
    """Zero the biases of the layers and norms the finding points at, or of all.

    A bias that is larger than the signal it is added to makes all samples look alike, or keeps a
    ReLU shut.

    **When it fails.** Some biases are meant: a forget gate's, that of a detector's class prior, one
    at the mean of a target. Those of recurrent layers are left alone.

    **Reference.** He 2015, section 2.2, assumes zero biases; Schoenholz 2017, section 3, has what
    their variance does to correlations.
    """
    names = [
        f"{name}.bias" if name else "bias"
        for name, module in scene.model.named_modules()
        if isinstance(module, (*KINDS, *NORMS)) and _is_set(module)
    ]
    chosen = [name for name in names if any(_at(name, place) for place in scene.where)] or names
    if not chosen:
        raise Unfit("All biases of this model are zero already.")
    patch = f"for name in {listed(chosen)}:\n    nn.init.zeros_(model.get_parameter(name))"
    carry_out(scene, patch)
    return Change(patch)


def _is_set(module: nn.Module) -> bool:
    bias = module._parameters.get("bias")
    return bias is not None and bias.requires_grad and bias.numel() > 0 and bool(bias.any())


def _at(name: str, place: str) -> bool:
    return name == place or name.startswith(f"{place}.")
