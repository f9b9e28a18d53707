"""The classical draws: Glorot, He, and Saxe."""

from __future__ import annotations

from collections.abc import Mapping

from steadygrad.remedies._draws import draw, zero_biases
from steadygrad.remedies._layers import Layer, some_layers
from steadygrad.remedies._patch import carry_out, listed
from steadygrad.remedies.remedy import Change, Scene, remedy


@remedy(
    "xavier-init",
    "initialisation",
    cures=("G201", "G202", "G203", "G204", "G206", "G302"),
    size=3,
)
def xavier_init(scene: Scene) -> Change:
    """Draw weights uniformly with variance 2 / (fan_in + fan_out), and zero the biases.

    Weights are those of linear and convolution layers, here and in the other draws; not those of
    embeddings, norms, and recurrent layers, nor tied, computed, or frozen ones.

    **When it fails.** It is made for layers that are linear around zero, as tanh is. A ReLU halves
    the squared gradient in each layer, so that 30 of them leave 1e-5 of it; GELU and SiLU less.

    **Reference.** Glorot 2010, section 4.2.1, equation 16.
    """
    layers = some_layers(scene.model)
    return _drawn(scene, _each(layers, "nn.init.xavier_uniform_(weight)"), layers)


@remedy(
    "kaiming-init",
    "initialisation",
    cures=("G201", "G202", "G203", "G204", "G206", "G301"),
    size=3,
)
def kaiming_init(scene: Scene) -> Change:
    """Draw weights from N(0, 2 / fan_in), and zero the biases.

    **When it fails.** The 2 is made for ReLU: linear layers and tanh get twice the squared signal
    in each layer, and so do residual branches without a norm. GELU and SiLU still lose.

    **Reference.** He 2015, section 2.2, equation 10.
    """
    layers = some_layers(scene.model)
    return _drawn(scene, _each(layers, "nn.init.kaiming_normal_(weight)"), layers)


@remedy("orthogonal-init", "initialisation", cures=("G201", "G202", "G203", "G204"), size=3)
def orthogonal_init(scene: Scene) -> Change:
    """Draw weights as orthogonal matrices, kernels flattened, and zero the biases.

    Grouped and transposed convolutions, whose weights are several matrices, are drawn normally with
    the same variance. Layers that widen are scaled up, so that second moments stay.

    **When it fails.** Nothing makes up for what the activation takes: 30 ReLU layers are left with
    3e-5 of the gradient. `level-init` is this with gains.

    **Reference.** Saxe 2014, section 3: learning time of deep linear networks.
    """
    layers = some_layers(scene.model)
    patch = draw(layers, dict.fromkeys(layers, 1.0))
    carry_out(scene, patch)
    return Change(patch)


def _each(layers: Mapping[str, Layer], line: str) -> str:
    return (
        f"for name in {listed(layers)}:\n    weight = model.get_submodule(name).weight\n    {line}"
    )


def _drawn(scene: Scene, lines: str, layers: Mapping[str, Layer]) -> Change:
    patch = "\n".join([lines, *zero_biases(layers)])
    carry_out(scene, patch)
    return Change(patch)
