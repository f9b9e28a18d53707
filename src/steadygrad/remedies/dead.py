"""Draw the units anew that are dead on the first batch."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from steadygrad.remedies._layers import TRANSPOSED, Layer, fan_in, layers_of, pointed_at
from steadygrad.remedies._parts import Call, Part, seen
from steadygrad.remedies._pass import first_loss
from steadygrad.remedies._patch import carry_out
from steadygrad.remedies.remedy import Change, Scene, Unfit, remedy

RELUS = ("ReLU", "ReLU6")
RELU_FUNCTIONS = ("relu", "relu_", "relu6")


@remedy("revive", "initialisation", cures=("G301",), size=3)
def revive(scene: Scene) -> Change:
    """Draw the weights of units whose ReLU is zero for the whole first batch, zero their biases.

    Weights are drawn from N(0, 2 / fan_in). A unit is a neuron or a channel. Layers that are wholly
    dead even so, as what they took in was zero before, are drawn anew as well.

    **When it fails.** What killed the units, mostly a learning rate that is too high or an input
    that is not standardised, kills them again. On a small batch a living unit may look dead. Units
    behind a norm are not looked at.

    **Reference.** He 2015, equation 10, for the draw; Lu 2019 (arXiv 1903.06733) on ReLUs that are
    born dead.
    """
    layers = {n: one for n, one in layers_of(scene.model).items() if not _is_transposed(one)}
    looked_at = set(pointed_at(scene, layers))
    patches: list[str] = []
    while True:
        alive = _alive(scene, layers)
        if patches:  # what a layer has left dead behind it
            looked_at = {name for name, units in alive.items() if not units.any()}
        dead = {
            name: (~units).nonzero().flatten().tolist()
            for name, units in alive.items()
            if name in looked_at and units.numel() == len(layers[name].weight)
        }
        lines = [
            line for name, units in dead.items() if units for line in _drawn(name, units, layers)
        ]
        if not lines or len(patches) == len(layers):
            break
        patches.append("\n".join(["with torch.no_grad():", *(f"    {line}" for line in lines)]))
        carry_out(scene, patches[-1])
    if not patches:
        raise Unfit("No unit with a ReLU is zero for the whole first batch.")
    return Change("\n".join(patches))


def _alive(scene: Scene, layers: Mapping[str, Layer]) -> dict[str, Tensor]:
    """Which units of each layer are above zero somewhere in the first batch, behind a ReLU."""
    alive: dict[str, Tensor] = {}

    def note(part: Part) -> None:
        if part.kind == "activation" and _is_relu(part) and part.output is not None:
            for one in part.before:
                if one.name in layers:
                    positive = _positive(part.output.detach(), layers[one.name])
                    alive[one.name] = alive.get(one.name, positive) | positive

    with seen(scene.model, note):
        first_loss(scene)
    return alive


def _drawn(name: str, units: list[int], layers: dict[str, Layer]) -> list[str]:
    layer = layers[name]
    deviation = math.sqrt(2 / fan_in(layer))
    chosen = "slice(None)" if len(units) == len(layer.weight) else str(units)
    lines = [
        f"layer, units = model.get_submodule({name!r}), {chosen}",
        f"layer.weight[units] = torch.randn_like(layer.weight[units]) * {deviation:.6g}",
    ]
    return lines + (["layer.bias[units] = 0.0"] if layer.bias is not None else [])


def _positive(output: Tensor, layer: Layer) -> Tensor:
    """Whether each unit is above zero anywhere [units]."""
    unit = output.dim() - 1 if isinstance(layer, nn.Linear) else output.dim() - _axes(layer)
    others = [axis for axis in range(output.dim()) if axis != unit]
    highest = output.amax(dim=others) if others else output
    return torch.as_tensor(highest > 0)


def _axes(layer: Layer) -> int:
    """How many axes of a convolution's output there are from the channels on."""
    return layer.weight.dim() - 1


def _is_transposed(layer: Layer) -> bool:
    return isinstance(layer, TRANSPOSED)


def _is_relu(part: Part) -> bool:
    subject = part.subject
    if isinstance(subject, Call):
        return subject.function.__name__ in RELU_FUNCTIONS
    return type(subject).__name__ in RELUS
