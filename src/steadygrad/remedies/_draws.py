"""Patches that draw weights: orthogonal where a weight is one matrix, normal where it is several.

Both have Var(W) * fan_in = gain^2, so that second moments go as gain^2 * E f^2. Orthogonal draws
keep their promise at any width and for all directions, see Saxe 2014 and Pennington 2017.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from steadygrad.remedies._layers import TRANSPOSED, Layer, fan_in
from steadygrad.remedies._patch import listed, rounded

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1, "LSTMCell": 4, "GRUCell": 3, "RNNCell": 1}


def draw(layers: Mapping[str, Layer], gains: Mapping[str, float]) -> str:
    """Lines that draw these layers with gains by name, and zero their biases."""
    matrices = {name: gains[name] for name, layer in layers.items() if _is_matrix(layer)}
    others = {
        name: gains[name] / math.sqrt(fan_in(layer))
        for name, layer in layers.items()
        if name not in matrices
    }
    return "\n".join([*_orthogonal(matrices), *_normal(others), *zero_biases(layers)])


def zero_biases(layers: Mapping[str, Layer]) -> list[str]:
    """Lines that zero the biases of layers; none where no layer has one."""
    names = [name for name, layer in layers.items() if layer.bias is not None]
    if not names:
        return []
    return [f"for name in {listed(names)}:", "    nn.init.zeros_(model.get_submodule(name).bias)"]


def scale(factors: Mapping[str, float]) -> str:
    """Lines that multiply parameters, by name, by their factors."""
    lines = ["with torch.no_grad():"]
    for factor, names in by_value(factors).items():
        lines += [
            f"    for name in {listed(names)}:",
            f"        model.get_parameter(name).mul_({factor:g})",
        ]
    return "\n".join(lines)


def draw_inputs(cells: Mapping[str, nn.RNNBase | nn.RNNCellBase]) -> list[str]:
    """Lines that draw the input weights of recurrent layers, an orthogonal matrix for each gate."""
    lines: list[str] = []
    for name, cell in cells.items():
        gates = gates_of(cell)
        for key, weight in cell.named_parameters(recurse=False):
            if key.startswith("weight_ih") and gates:
                widen = math.sqrt(max(1.0, len(weight) / gates / weight.shape[1]))
                lines += _gate_lines(f"{name}.{key}" if name else key, gates, rounded(widen, 6))
    return lines


def gates_of(cell: nn.Module) -> int:
    """How many gates the rows of a recurrent weight are for; 0 for a cell we do not know."""
    kind = cell.mode if isinstance(cell, nn.RNNBase) else type(cell).__name__
    return GATES.get(kind.partition("_")[0], 0)


def by_value(values: Mapping[str, float], digits: int = 6) -> dict[float, list[str]]:
    """Names by their value, rounded as it is shown."""
    groups: dict[float, list[str]] = {}
    for name, value in values.items():
        groups.setdefault(rounded(value, digits), []).append(name)
    return groups


def _gate_lines(parameter: str, gates: int, gain: float) -> list[str]:
    return [
        "with torch.no_grad():",
        f"    for gate in model.get_parameter({parameter!r}).chunk({gates}):",
        f"        nn.init.orthogonal_(gate, {gain:g})",
    ]


def _is_matrix(layer: Layer) -> bool:
    """Whether a weight is a single matrix of which torch can make an orthogonal one."""
    alone = isinstance(layer, nn.Linear) or (
        layer.groups == 1 and not isinstance(layer, TRANSPOSED)
    )
    return alone and layer.weight.dtype in (torch.float32, torch.float64)


def _orthogonal(gains: Mapping[str, float]) -> list[str]:
    lines: list[str] = []
    for gain, names in by_value(gains).items():
        lines += [
            f"for name in {listed(names)}:",
            "    weight = model.get_submodule(name).weight",
            "    widening = max(1.0, len(weight) / weight[0].numel())",
            f"    nn.init.orthogonal_(weight, {gain:g} * widening**0.5)",
        ]
    return lines


def _normal(deviations: Mapping[str, float]) -> list[str]:
    lines: list[str] = []
    for deviation, names in by_value(deviations).items():
        lines += [
            f"for name in {listed(names)}:",
            f"    nn.init.normal_(model.get_submodule(name).weight, std={deviation:g})",
        ]
    return lines
