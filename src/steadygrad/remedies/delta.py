"""Convolutions that begin as an orthogonal map of the channels at each position."""

from __future__ import annotations

from torch import nn

from steadygrad.remedies._draws import by_value, zero_biases
from steadygrad.remedies._gains import level_gains
from steadygrad.remedies._layers import CONVOLUTIONS, TRANSPOSED, Layer, layers_of
from steadygrad.remedies._parts import parts_of
from steadygrad.remedies._patch import carry_out, listed
from steadygrad.remedies.remedy import Change, Scene, Unfit, remedy


@remedy("delta-orthogonal", "initialisation", cures=("G201", "G202", "G102", "G101"), size=3)
def delta_orthogonal(scene: Scene) -> Change:
    """Zero the kernels of convolutions but for their centers, which become orthogonal matrices.

    So all singular values of the layer are alike, for every spatial mode: 10,000 layers of tanh
    stayed trainable. The gain is that of the activation that feeds the layer, biases are zero. Only
    convolutions with odd kernels, one group, and at least as many channels after as before are
    changed.

    **When it fails.** All mixing of positions has to be learned. With strides, positions that the
    centers pass by have no effect at first.

    **Reference.** Xiao 2018, section 2.4.2, algorithm 1.
    """
    fit = {name: layer for name, layer in layers_of(scene.model).items() if _fits(layer)}
    if not fit:
        raise Unfit("No convolution has an odd kernel, one group, and no fewer channels after it.")
    gains = dict.fromkeys(fit, 1.0) | level_gains(parts_of(scene))
    lines: list[str] = []
    for gain, names in by_value({name: gains[name] for name in fit}).items():
        lines += [
            f"for name in {listed(names)}:",
            "    weight = model.get_submodule(name).weight",
            "    center = (slice(None), slice(None), *(size // 2 for size in weight.shape[2:]))",
            f"    matrix = nn.init.orthogonal_(torch.empty_like(weight[center]), {gain:g})",
            "    with torch.no_grad():",
            "        weight.zero_()",
            "        weight[center] = matrix",
        ]
    patch = "\n".join([*lines, *zero_biases(fit)])
    carry_out(scene, patch)
    return Change(patch)


def _fits(layer: Layer) -> bool:
    if not isinstance(layer, CONVOLUTIONS) or isinstance(layer, TRANSPOSED):
        return False
    odd = all(size % 2 for size in layer.kernel_size)
    wide = layer.out_channels >= layer.in_channels
    return odd and wide and layer.groups == 1 and layer.weight[0, 0].numel() > 1 and _plain(layer)


def _plain(layer: nn.Module) -> bool:
    """Whether torch can make an orthogonal matrix of this dtype."""
    return all(one.dtype.itemsize >= 4 for one in layer.parameters(recurse=False))
