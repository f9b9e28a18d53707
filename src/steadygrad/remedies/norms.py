"""Norms behind the layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import nn

from steadygrad.remedies._insert import inserted
from steadygrad.remedies._layers import CONVOLUTIONS, Layer, layers_of, pointed_at
from steadygrad.remedies._parts import Part, fed_by, parts_of
from steadygrad.remedies.remedy import Change, Scene, Unfit, remedy

Code = Callable[[Layer, tuple[int, ...]], str | None]
"""The code that makes a norm for a layer whose output has this shape; None where none fits."""


@remedy(
    "batch-norm",
    "normalisation",
    cures=("G102", "G104", "G101", "G103", "G202", "G302", "G105"),
    size=4,
)
def batch_norm(scene: Scene) -> Change:
    """Put a batch norm behind hidden layers: those the finding points at, or all.

    Layers that a norm follows, those called more than once, and the last layer have none.

    **When it fails.** Without skips the gradient grows 1.21 times with each [layer, norm, ReLU], so
    that 60 of them explode. Small batches are noisy; evaluation differs from training. Where the
    signal is below the root of eps, it stays small.

    **Reference.** Ioffe & Szegedy 2015, section 3; Yang 2019 for the explosion.
    """
    return _inserted(scene, _batch_norm)


@remedy(
    "layer-norm",
    "normalisation",
    cures=("G102", "G104", "G101", "G103", "G202", "G302", "G105"),
    size=4,
)
def layer_norm(scene: Scene) -> Change:
    """Put a layer norm behind hidden layers: those the finding points at, or all.

    Behind convolutions it is a group norm of one group, over channels and positions.

    **When it fails.** Without skips, depth still makes the gradient grow or samples look alike.
    Below the root of its eps the signal stays small.

    **Reference.** Ba 2016 (arXiv 1607.06450), section 3.
    """
    return _inserted(scene, _layer_norm)


@remedy("rms-norm", "normalisation", cures=("G102", "G104", "G101", "G103", "G202"), size=4)
def rms_norm(scene: Scene) -> Change:
    """Put an RMS norm behind hidden linear layers: those the finding points at, or all.

    **When it fails.** A mean that all samples share stays: samples may still look alike.

    **Reference.** Zhang & Sennrich 2019 (arXiv 1910.07467), section 3.
    """
    return _inserted(scene, _rms_norm)


@remedy("group-norm", "normalisation", cures=("G102", "G104", "G101", "G103", "G202"), size=4)
def group_norm(scene: Scene) -> Change:
    """Put a group norm behind hidden convolutions: those the finding points at, or all.

    There are 32 groups, or as many as divide the channels. It does not depend on the batch.

    **When it fails.** Groups of one channel and few positions have nothing to normalise over. Below
    the root of its eps the signal stays small.

    **Reference.** Wu & He 2018, section 3.
    """
    return _inserted(scene, _group_norm)


def _batch_norm(layer: Layer, shape: tuple[int, ...]) -> str | None:
    axes, units = len(shape), shape[1 if isinstance(layer, CONVOLUTIONS) else -1]
    if math.prod(shape) <= units:
        return None  # a single value of each has no variance
    if isinstance(layer, CONVOLUTIONS):
        return f"nn.BatchNorm{axes - 2}d({layer.out_channels})" if axes > 2 else None
    return f"nn.BatchNorm1d({layer.out_features})" if axes == 2 else None


def _layer_norm(layer: Layer, shape: tuple[int, ...]) -> str | None:
    if isinstance(layer, CONVOLUTIONS):
        return f"nn.GroupNorm(1, {layer.out_channels})" if len(shape) > 2 else None
    return f"nn.LayerNorm({layer.out_features})"


def _rms_norm(layer: Layer, _: tuple[int, ...]) -> str | None:
    return f"nn.RMSNorm({layer.out_features})" if isinstance(layer, nn.Linear) else None


def _group_norm(layer: Layer, shape: tuple[int, ...]) -> str | None:
    if not isinstance(layer, CONVOLUTIONS) or len(shape) < 3:
        return None
    channels = layer.out_channels
    groups = max(one for one in range(1, 33) if channels % one == 0)
    return f"nn.GroupNorm({groups}, {channels})"


# --- Where, and how -------------------------------------------------------------------------------


def _inserted(scene: Scene, code: Code) -> Change:
    bare = _bare(parts_of(scene))
    layers = {name: one for name, one in layers_of(scene.model).items() if name in bare and name}
    chosen = pointed_at(scene, layers)
    made = {name: code(layer, _shape(layer, bare[name])) for name, layer in chosen.items()}
    fit = {name: one for name, one in made.items() if one is not None}
    if not fit:
        raise Unfit("No hidden layer of the kinds this norm is for is without a norm behind it.")
    return inserted(scene, fit)


def _bare(parts: Sequence[Part]) -> dict[str, Part]:
    """Layers called once that feed a later layer and are followed by no norm."""
    calls = [part.name for part in parts if part.kind == "layer"]
    return {
        part.name: part
        for part in parts
        if part.kind == "layer"
        and calls.count(part.name) == 1
        and any(one.kind in ("layer", "other") for one in fed_by(part))
        and all(one.kind != "norm" for one in part.after)
    }


def _shape(layer: Layer, part: Part) -> tuple[int, ...]:
    """The shape of the layer's output; where no pass was made, a usual one."""
    if part.shape:
        return part.shape
    if isinstance(layer, nn.Linear):
        return (2, layer.out_features)
    return (2, layer.out_channels, *(2 for _ in layer.kernel_size))
