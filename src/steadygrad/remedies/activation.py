"""Other activations between the layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

from torch.nn import functional as F  # noqa: N812 - its customary name

from steadygrad.remedies._draws import draw
from steadygrad.remedies._layers import layers_of
from steadygrad.remedies._parts import Part, parts_of
from steadygrad.remedies._patch import rounded
from steadygrad.remedies._swap import Other, swapped
from steadygrad.remedies.remedy import Change, Scene, remedy


@remedy("leaky-relu", "activation", cures=("G301", "G302", "G304"), size=2)
def leaky_relu(scene: Scene) -> Change:
    """Put LeakyReLU(0.01) in the place of the activations between layers.

    A unit that is shut still gets a hundredth of the gradient, so that it can open again. Outputs
    and gates stay as they are.

    **When it fails.** What shuts the units goes on; ten layers of shut units still pass 1e-20.

    **Reference.** Maas 2013, section 2, equation 2.
    """
    return swapped(scene, Other("nn.LeakyReLU(0.01)", "LeakyReLU", F.leaky_relu))


@remedy("prelu", "activation", cures=("G301", "G302"), size=3)
def prelu(scene: Scene) -> Change:
    """Put PReLU, whose negative slope is learned from 0.25 on, in the place of activation modules.

    Each has one slope, which the optimizer steps as the parameters of its first group.

    **When it fails.** Activations that are written as functions have no place for a parameter.
    Weight decay draws the slopes to zero, which is ReLU; the authors use none.

    **Reference.** He 2015, section 2.1, equation 1.
    """
    made = "nn.PReLU().to(next(model.parameters()))"
    each = 'optimizer.param_groups[0]["params"] += model.get_submodule(name).parameters()'
    return swapped(scene, Other(made, "PReLU", each=each))


@remedy("elu", "activation", cures=("G301", "G302"), size=2)
def elu(scene: Scene) -> Change:
    """Put ELU in the place of the activations between layers.

    Its mean is near zero and its slope reaches zero only far out.

    **When it fails.** Inputs far below zero still get no gradient. The gain is another one: 1.24
    instead of 1.41 for ReLU, so that signals grow a little with weights drawn for ReLU.

    **Reference.** Clevert 2016, section 3.
    """
    return swapped(scene, Other("nn.ELU()", "ELU", F.elu))


@remedy("selu", "activation", cures=("G304", "G301", "G302", "G102", "G104"), size=3)
def selu(scene: Scene) -> Change:
    """Put SELU in the place of the activations between layers, and draw weights from 1 / fan_in.

    With these weights and zero biases mean 0 and variance 1 are a fixed point of every layer.

    **When it fails.** Dropout (AlphaDropout is made for it), norms, residual sums, and inputs that
    are not standardised move the signal away from the fixed point.

    **Reference.** Klambauer 2017, section 2, equation 2, and theorem 1.
    """
    layers = layers_of(scene.model)
    lines = draw(layers, dict.fromkeys(layers, 1.0))
    return swapped(scene, Other("nn.SELU()", "SELU", F.selu), lines)


@remedy("gelu", "activation", cures=("G301", "G302"), size=2)
def gelu(scene: Scene) -> Change:
    """Put GELU in the place of the activations between layers.

    **When it fails.** Without norms or skips deeper than 15 layers: its gain is unstable, an error
    of 5 % in the variance doubles in 20 layers.

    **Reference.** Hendrycks & Gimpel 2016 (arXiv 1606.08415), section 2.
    """
    return swapped(scene, Other("nn.GELU()", "GELU", F.gelu))


@remedy("silu", "activation", cures=("G301", "G302"), size=2)
def silu(scene: Scene) -> Change:
    """Put SiLU in the place of the activations between layers.

    **When it fails.** Without norms or skips deeper than 15 layers: its gain is unstable, an error
    of 5 % in the variance doubles in 17 layers.

    **Reference.** Elfwing 2017 (arXiv 1702.03118), section 2; Ramachandran 2017 (Swish).
    """
    return swapped(scene, Other("nn.SiLU()", "SiLU", F.silu))


@remedy("tailored-relu", "activation", cures=("G304", "G301", "G105", "G102", "G101"), size=3)
def tailored_relu(scene: Scene) -> Change:
    """Put a leaky ReLU in place whose slope is chosen for the depth, and orthogonal weights.

    Over L layers of sqrt(2 / (1 + a^2)) LeakyReLU_a, two uncorrelated inputs come out with a
    correlation that the slope a alone decides; a is such that it is 0.9. The factor is put into the
    weights of the layer behind. Biases are zero.

    **When it fails.** It is made for networks without norms, and with skips it is shallower than
    its layers count. The authors train it with K-FAC; under SGD it learns more slowly.

    **Reference.** Zhang 2022 (TAT, arXiv 2203.08120), section 4.1: C map of leaky ReLUs and
    eta = 0.9.
    """
    parts = parts_of(scene)
    slope = rounded(tailored_slope(sum(part.kind == "activation" for part in parts)))
    layers = layers_of(scene.model)
    gains = dict.fromkeys(layers, 1.0) | dict.fromkeys(_fed(parts), math.sqrt(2 / (1 + slope**2)))
    function = partial(F.leaky_relu, negative_slope=slope)
    return swapped(scene, Other(f"nn.LeakyReLU({slope:g})", "", function), draw(layers, gains))


def _fed(parts: Sequence[Part]) -> list[str]:
    """Layers that take in an activation."""
    mine = [part for part in parts if part.kind == "layer"]
    return [part.name for part in mine if any(one.kind == "activation" for one in part.before)]


def tailored_slope(depth: int, eta: float = 0.9) -> float:
    """The slope at which `depth` leaky ReLUs map the correlation 0 to eta; 0 where ReLU is below.

    Zhang 2022 (TAT), section 4.1. Bisection; the correlation falls as the slope rises.
    """
    return _bisected(lambda slope: _correlation(slope, depth) - eta)


def _correlation(slope: float, depth: int) -> float:
    """Correlation of two uncorrelated inputs behind `depth` layers of leaky ReLU (Cho & Saul)."""
    weight = (1 - slope) ** 2 / (math.pi * (1 + slope**2))
    c = 0.0
    for _ in range(depth):
        c = min(1.0, c + weight * (math.sqrt(1 - c * c) - c * math.acos(c)))
    return c


def _bisected(falling: Callable[[float], float]) -> float:
    low, high = 0.0, 1.0
    if falling(low) <= 0:
        return 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return low
