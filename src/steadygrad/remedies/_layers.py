"""The layers of a model whose weights may be drawn anew."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from steadygrad.remedies.remedy import Scene, Unfit

Layer = (
    nn.Linear
    | nn.Conv1d
    | nn.Conv2d
    | nn.Conv3d
    | nn.ConvTranspose1d
    | nn.ConvTranspose2d
    | nn.ConvTranspose3d
)
KINDS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
CONVOLUTIONS = KINDS[1:]
TRANSPOSED = KINDS[4:]
RECURRENT = (nn.RNNBase, nn.RNNCellBase)
NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)


def layers_of(model: nn.Module) -> dict[str, Layer]:
    """Linear and convolution layers by name, in the order of the modules.

    Left out are frozen weights, those that are computed (weight norm, spectral norm), those that
    have no values yet, and those that are shared with another kind of module (a tied embedding). Of
    layers that share a weight the first stands for all.
    """
    shared = {id(p) for m in model.modules() if not isinstance(m, KINDS) for p in _own(m)}
    found: dict[str, Layer] = {}
    for name, module in model.named_modules():
        if isinstance(module, KINDS) and _is_drawn(module):
            if id(module.weight) not in shared:
                found[name] = module
            shared.add(id(module.weight))
    return found


def some_layers(model: nn.Module) -> dict[str, Layer]:
    """As `layers_of`; raise Unfit where there are none."""
    found = layers_of(model)
    if not found:
        raise Unfit("No linear or convolution layer of this model has a trainable weight.")
    return found


def recurrent_of(model: nn.Module) -> dict[str, nn.RNNBase | nn.RNNCellBase]:
    """Recurrent layers and cells by name that have trainable weights."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, RECURRENT) and all(p.requires_grad for p in module.parameters())
    }


def pointed_at(scene: Scene, named: Mapping[str, Layer]) -> dict[str, Layer]:
    """Those of the named layers at or below the scene's places; all, where it points at none."""
    chosen = {
        name: layer
        for name, layer in named.items()
        if any(_lies_at(name, place) for place in scene.where)
    }
    return chosen or dict(named)


def fan_in(layer: Layer) -> float:
    """How many inputs an output adds up: C_in / groups * kernel, over stride where transposed.

    See `core.theory.predicted_ratio`.
    """
    if isinstance(layer, nn.Linear):
        return float(layer.in_features)
    size = layer.in_channels / layer.groups * layer.weight[0, 0].numel()
    if isinstance(layer, TRANSPOSED):
        size /= float(torch.tensor(layer.stride).prod())
    return size


def _own(module: nn.Module) -> list[Tensor]:
    return list(module.parameters(recurse=False))


def _is_drawn(layer: Layer) -> bool:
    weight = layer._parameters.get("weight")
    return (
        weight is not None
        and not is_lazy(weight)
        and weight.requires_grad
        and weight.is_floating_point()
        and weight.layout is torch.strided
        and weight.numel() > 0
    )


def _lies_at(name: str, place: str) -> bool:
    """Whether a layer is the place, is below it, or owns the parameter that is the place."""
    return name == place or name.startswith(f"{place}.") or place.startswith(f"{name}.")
