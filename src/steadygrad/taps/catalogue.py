"""The places where numbers are read, in the order in which they became known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from steadygrad.core.record import Role, Site
from steadygrad.probe.wrappers import unwrapped

Places = NDArray[np.int64]


@dataclass(slots=True)
class Catalogue:
    """Sites, and each one's place among those of its role. Sites are only ever added."""

    sites: list[Site] = field(default_factory=list)
    _places: dict[tuple[Role, str], int] = field(default_factory=dict)
    _counts: dict[Role, int] = field(default_factory=dict)

    def place(self, site: Site) -> int:
        """The place of a site among those of its role; a new one is added."""
        key = (site.role, site.name)
        if key not in self._places:
            self._places[key] = self._counts.get(site.role, 0)
            self._counts[site.role] = self._places[key] + 1
            self.sites.append(site)
        return self._places[key]

    def count(self, role: Role) -> int:
        """How many sites of a role there are."""
        return self._counts.get(role, 0)

    def places(self, sites: Sequence[Site]) -> Places:
        """The places of some sites."""
        return np.array([self.place(one) for one in sites], dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Names:
    """What the user calls modules and parameters: names by id, and the order of the forward pass.

    Nothing of the user's is kept alive by it.
    The order is that in which modules were registered.
    """

    modules: Mapping[int, str]
    parameters: Mapping[int, str]
    kinds: Mapping[int, str]  # class name of the module that holds a parameter, by its id
    depths: Mapping[str, int]

    def site_of(self, parameter: Tensor, given: str) -> Site:
        """The site of a parameter; `given` is its name where no model is known to hold it."""
        name = self.parameters.get(id(parameter), given)
        return Site(
            name,
            "weight",
            self.depths.get(name, -1),
            self.kinds.get(id(parameter), type(parameter).__name__),
            _fan_in(parameter),
            tuple(parameter.shape),
        )


def names_in(models: Mapping[str, nn.Module]) -> Names:
    """Name everything in some models; with more than one, the model's own name stands in front."""
    modules: dict[int, str] = {}
    parameters: dict[int, str] = {}
    kinds: dict[int, str] = {}
    for prefix, model in models.items():
        front = f"{prefix}." if prefix else ""
        for path, module in unwrapped(model).named_modules():
            modules.setdefault(id(module), f"{front}{path}".strip("."))
            for name, parameter in module.named_parameters(recurse=False):
                full = f"{front}{path}.{name}" if path else f"{front}{name}"
                parameters.setdefault(id(parameter), full)
                kinds.setdefault(id(parameter), type(module).__name__)
    depths = {name: place for place, name in enumerate(parameters.values())}
    return Names(modules, parameters, kinds, depths)


def _fan_in(parameter: Tensor) -> int:
    return parameter[0].numel() if parameter.dim() >= 2 and len(parameter) else 0
