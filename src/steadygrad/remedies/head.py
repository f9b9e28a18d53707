"""Outputs that begin small."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from steadygrad.remedies._draws import scale
from steadygrad.remedies._layers import layers_of
from steadygrad.remedies._parts import Part, fed_by, parts_of
from steadygrad.remedies._patch import carry_out, rounded
from steadygrad.remedies.remedy import Change, Scene, Unfit, remedy


@remedy("small-head", "initialisation", cures=("G605",), size=1)
def small_head(scene: Scene) -> Change:
    """Divide an output layer by the size of its outputs, so that they begin at 1.

    The size is the root mean square in the first batch, over 1. The layer is the one the finding
    points at, else each that feeds no other. A head whose exponential is taken, as a log-variance
    or a log-rate, then begins where the exponential is of its own size.

    **When it fails.** Nothing bounds what the head learns later. Where several samples decide, the
    first batch may be small by chance.

    **Reference.** Kingma & Welling 2014, appendix C, has such heads; the remedy is customary.
    """
    factors = {
        f"{part.name}.{key}".lstrip("."): rounded(1 / size, 3)
        for part, size in _large_heads(scene)
        for key in ("weight", "bias")
        if isinstance(getattr(part.subject, key, None), nn.Parameter)
    }
    if not factors:
        raise Unfit("No output layer puts out more than 1 in the first batch.")
    patch = scale(factors)
    carry_out(scene, patch)
    return Change(patch)


def _large_heads(scene: Scene) -> Iterator[tuple[Part, float]]:
    """Output layers that put out more than 1, and how much."""
    mine = layers_of(scene.model)
    layers = {part.name: part for part in parts_of(scene) if part.name in mine}
    heads = [name for name, part in layers.items() if all(o.kind != "layer" for o in fed_by(part))]
    for name in [one for one in scene.where if one in layers] or heads:
        output = layers[name].output
        size = 0.0 if output is None else float(output.detach().double().square().mean().sqrt())
        if 1 < size < float("inf"):
            yield layers[name], size
