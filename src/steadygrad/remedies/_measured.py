"""Draw orthogonal weights and scale them by what is measured in one forward pass."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from steadygrad.remedies._draws import draw, scale
from steadygrad.remedies._layers import some_layers
from steadygrad.remedies._parts import Part, seen
from steadygrad.remedies._pass import first_loss
from steadygrad.remedies._patch import carry_out, rounded
from steadygrad.remedies.remedy import Change, Scene, Unfit


def drawn_and_scaled(scene: Scene, size: Callable[[Part], float]) -> Change:
    """Divide each drawn weight by a size of its output, or leave it where that is no number.

    Biases are zero, so that outputs scale with weights: in a single pass each layer sees what the
    layers before it put out after their own correction. A layer that is called several times is
    scaled for its first call.
    """
    if scene.loss is None:
        raise Unfit("The loss of the first batch cannot be computed again here.")
    layers = some_layers(scene.model)
    drawing = draw(layers, dict.fromkeys(layers, 1.0))
    carry_out(scene, drawing)
    factors: dict[str, float] = {}

    def level(part: Part) -> Tensor | None:
        if part.name not in layers or part.output is None:
            return None
        if part.name not in factors:
            factors[part.name] = _inverse(size(part))
        return part.output * factors[part.name]

    with seen(scene.model, level):
        first_loss(scene)
    scaling = scale({f"{name}.weight".lstrip("."): factor for name, factor in factors.items()})
    if not factors:
        return Change(drawing)
    carry_out(scene, scaling)
    return Change(f"{drawing}\n{scaling}")


def _inverse(size: float) -> float:
    return rounded(1 / size, 6) if 1e-30 < size < 1e30 else 1.0
