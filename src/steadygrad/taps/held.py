"""One optimizer's parameters: how they are read, and where they stand among the sites."""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from steadygrad.core.record import Site
from steadygrad.guards.attachment import Attachment
from steadygrad.guards.names import names_of
from steadygrad.guards.norms import Reader
from steadygrad.guards.readers import reader_of
from steadygrad.guards.refusals import owners_of
from steadygrad.taps.catalogue import Catalogue, Names, Places
from steadygrad.taps.jumps import Jumps
from steadygrad.taps.stale import Staleness


@dataclass(slots=True)
class Held:
    """An optimizer as it is now; another one is made when its groups change.

    `seen` [parameters] says which have had a gradient in some step.
    """

    optimizer: weakref.ref[Optimizer]
    reader: Reader
    place: int  # of the optimizer's own site
    places: Places  # of its parameters' sites
    key: object
    stale: Staleness
    on_host: bool
    seen: np.ndarray[tuple[int], np.dtype[np.bool_]]
    all: np.ndarray[tuple[int], np.dtype[np.bool_]]
    ids: frozenset[int]  # of the parameters
    wants: np.ndarray[tuple[int], np.dtype[np.bool_]]  # a gradient
    settings: Mapping[str, Any]  # JSON-like: what the optimizer was told
    jumps: Jumps = field(default_factory=Jumps)
    steps: int = 0
    sites: Sequence[Site] = field(default_factory=tuple)

    @property
    def parameters(self) -> Sequence[Tensor]:
        """All parameters, group by group."""
        return self.reader.parameters

    def release(self) -> None:
        """Let go of the parameters of an optimizer that is gone."""
        self.reader = Reader([])
        self.stale.parameters = []

    def gradients(self) -> list[Tensor | None]:
        """The gradient of each parameter, as it is."""
        return [one.grad for one in self.reader.parameters]

    def present(self, grads: Sequence[Tensor | None]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Which of the gradients are there: `all` itself where every one is."""
        if not any(grad is None for grad in grads):
            return self.all
        return np.array([grad is not None for grad in grads])


def key_of(optimizer: Optimizer) -> object:
    """What changes when an optimizer gets other parameters."""
    return [(id(group["params"]), len(group["params"])) for group in optimizer.param_groups]


def held(
    optimizer: Optimizer, place: int, catalogue: Catalogue, names: Names, model: nn.Module | None
) -> Held:
    """Look at an optimizer's groups."""
    reader = reader_of(optimizer, model)
    given = names_of(optimizer, None)
    sites = [
        names.site_of(one, name if place == 0 else f"optimizer {place + 1}.{name}")
        for one, name in zip(reader.parameters, given, strict=True)
    ]
    count = len(reader.parameters)
    found = Held(
        weakref.ref(optimizer, lambda _: found.release()),
        reader,
        place,
        catalogue.places(sites),
        key_of(optimizer),
        Staleness(reader.parameters),
        all(one.device.type == "cpu" for one in reader.parameters),
        np.zeros(count, dtype=bool),
        np.ones(count, dtype=bool),
        frozenset(map(id, reader.parameters)),
        np.array([one.requires_grad for one in reader.parameters], dtype=bool),
        settings_of(optimizer, reader.parameters),
        sites=sites,
    )
    return found


def settings_of(optimizer: Optimizer, parameters: Sequence[Tensor]) -> dict[str, Any]:
    """What an optimizer was told, as JSON can say it."""
    groups = optimizer.param_groups
    first = groups[0] if groups else {}
    return {
        "type": type(optimizer).__name__,
        "lr": max((_number(group.get("lr")) for group in groups), default=math.nan),
        "initial_lr": max((_aim(group) for group in groups), default=math.nan),
        "momentum": _number(first.get("momentum", 0.0)),
        "betas": [_number(beta) for beta in first.get("betas") or ()],
        "eps": _number(first.get("eps")),
        "weight_decay": _number(first.get("weight_decay", 0.0)),
        "parameters": len(parameters),
        "dtypes": sorted({str(p.dtype).removeprefix("torch.") for p in parameters}),
    }


def _aim(group: Mapping[str, Any]) -> float:
    """The lr that an attached schedule leads to; the group's own where there is none."""
    found = [_number(group.get(key)) for key in ("initial_lr", "max_lr", "lr")]
    return max((one for one in found if math.isfinite(one)), default=math.nan)


def _number(value: Any) -> float:
    """A setting as a float; NaN where it is none, or lies on a device."""
    if isinstance(value, torch.Tensor):
        return float(value) if value.device.type == "cpu" and value.numel() == 1 else math.nan
    return float(value) if isinstance(value, (int, float)) else math.nan


def guard_of(optimizer: Optimizer) -> Attachment | None:
    """The guard at an optimizer, if there is one."""
    return next((one for one in owners_of(optimizer) if isinstance(one, Attachment)), None)
