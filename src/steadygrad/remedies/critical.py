"""Draw weights and biases at the edge of chaos."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from steadygrad.core.theory import CriticalPair
from steadygrad.probe.gain import Activation, critical, critical_line
from steadygrad.remedies._draws import by_value, draw
from steadygrad.remedies._layers import Layer, some_layers
from steadygrad.remedies._parts import Part, parts_of
from steadygrad.remedies._patch import carry_out, listed
from steadygrad.remedies.remedy import Change, Scene, Unfit, remedy

BIAS = 0.05
"""Var(b) on the critical line of activations with a fixed point: the setting of Schoenholz 2017,
figure 5, at which tanh has sigma_w^2 = 1.76."""


@remedy(
    "critical-init",
    "initialisation",
    cures=("G201", "G202", "G102", "G101", "G105", "G104"),
    size=3,
)
def critical_init(scene: Scene) -> Change:
    """Draw weights and biases with the pair of variances at which signals neither die nor explode.

    For GELU, SiLU and their like that is the half-stable pair, at which small changes of the signal
    along itself and across it both keep their size; the first layer brings the input to the second
    moment K* of that point, and layers fed by nothing but the last activation undo it. For tanh and
    its like it is the point of the critical line with a bias variance of 0.05.

    **When it fails.** ReLU has no such pair with a bias; its own gain is critical. Norms and
    residual sums between the layers move the signal elsewhere. Theory is for wide layers.

    **Reference.** Roberts, Yaida & Hanin 2022, section 5.3 (GELU: 0.1729, 1.9831; SiLU: 0.5551,
    1.9880); Schoenholz 2017 for the critical line.
    """
    layers = some_layers(scene.model)
    parts = parts_of(scene)
    pair = _pair(_shared_activation(parts))
    firsts, last = _ends(parts, layers)
    gains = dict.fromkeys(layers, math.sqrt(pair.weight))
    gains |= dict.fromkeys(firsts, math.sqrt(max(pair.second_moment - pair.bias, 0.0)))
    for name, second in _entering(parts, firsts).items():
        gains[name] /= math.sqrt(second)
    gains |= dict.fromkeys(last, 1.0 / math.sqrt(pair.second_moment))
    biased = [n for n, one in layers.items() if one.bias is not None and n not in last]
    patch = "\n".join([draw(layers, gains), *_biases(biased, pair.bias)])
    carry_out(scene, patch)
    return Change(patch)


def _pair(activation: Activation) -> CriticalPair:
    """The half-stable pair; else the point of the critical line, kept at the input's own size."""
    try:
        return critical(activation)
    except ValueError:
        pass
    try:
        weight, second_moment = critical_line(activation, BIAS)
    except ValueError as error:
        raise Unfit(
            "No pair of variances of weights and biases is critical for this activation; "
            "where it is ReLU, kaiming-init is critical."
        ) from error
    return CriticalPair(BIAS, weight, second_moment)


def _shared_activation(parts: Sequence[Part]) -> Activation:
    """The activation that feeds most layers."""
    fed = [one for part in parts if part.kind == "layer" for one in part.before]
    used = [one.subject for one in fed if one.kind == "activation"]
    if not used:
        raise Unfit("No layer of this model is fed by an elementwise activation.")
    names = [type(one).__name__ + repr(one) for one in used]
    most = max(names, key=names.count)
    return used[names.index(most)]


def _ends(parts: Sequence[Part], layers: Mapping[str, Layer]) -> tuple[list[str], list[str]]:
    """Layers that are fed by no activation, and layers that feed none."""
    mine = [part for part in parts if part.kind == "layer" and part.name in layers]
    firsts = [p.name for p in mine if not any(one.kind == "activation" for one in p.before)]
    last = [p.name for p in mine if p.name not in firsts and not p.after]
    return list(dict.fromkeys(firsts)), list(dict.fromkeys(last))


def _entering(parts: Sequence[Part], names: Sequence[str]) -> dict[str, float]:
    """The second moment of the data that enters some layers, where a pass was made."""
    found = {p.name: p.entered for p in parts if p.name in names and not p.before}
    known = {name: one.detach().double() for name, one in found.items() if one is not None}
    sizes = {name: float(one.square().mean()) for name, one in known.items()}
    return {name: size for name, size in sizes.items() if 0 < size < math.inf}


def _biases(names: Sequence[str], variance: float) -> list[str]:
    lines: list[str] = []
    for deviation, some in by_value(dict.fromkeys(names, math.sqrt(variance))).items():
        lines += [
            f"for name in {listed(some)}:",
            f"    nn.init.normal_(model.get_submodule(name).bias, std={deviation:g})",
        ]
    return lines
