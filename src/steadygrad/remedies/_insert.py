"""Put norms behind layers: at once by a hook, for the user by a Sequential.

A hook leaves the names of the model's parameters and the kinds of its modules as they are, which
other code may rely on; what is computed is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from steadygrad.remedies._patch import carry_out
from steadygrad.remedies.remedy import Change, Scene

NAME = "steadygrad_norm"
WRAP = """\
for name, norm in norms.items():
    parent, _, child = name.rpartition(".")
    layer = model.get_submodule(name)
    setattr(model.get_submodule(parent), child, nn.Sequential(layer, norm.to(layer.weight)))
    optimizer.param_groups[0]["params"] += norm.parameters()"""


def inserted(scene: Scene, norms: Mapping[str, str]) -> Change:
    """Put norms, by the code that makes them, behind layers by name."""
    making = "norms = {\n" + "".join(f"    {n!r}: {one},\n" for n, one in norms.items()) + "}"
    for name, norm in carry_out(scene, making)["norms"].items():
        layer = scene.model.get_submodule(name)
        layer.add_module(NAME, norm.to(next(layer.parameters())))
        layer.register_forward_hook(_normalised)
        scene.optimizer.param_groups[0]["params"] += norm.parameters()
    return Change(f"{making}\n{WRAP}")


def _normalised(module: nn.Module, _args: Any, output: Tensor) -> Tensor:  # any arguments
    out: Tensor = module.get_submodule(NAME)(output)
    return out
