"""A Record holds what was measured and where; it knows nothing of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Role = Literal["unit", "output", "weight", "norm", "time", "step"]
"""What a site is: a unit of the trunk, the output of an activation, norm, or attention op, an op
with weights, a norm's own scale and shift, a recurrent module over time, or the step itself."""

Facts = Mapping[str, Any]  # JSON-like: strings, numbers, lists and dicts thereof


@dataclass(frozen=True, slots=True)
class Site:
    """One place where numbers are read.

    `name` is a qualified name as `named_modules()` or `named_parameters()` gives it; `depth` is the
    place in forward order (-1: unknown); `kind` is the class of the module or the name of the op.
    """

    name: str
    role: Role
    depth: int = -1
    kind: str = ""
    fan_in: int = 0
    shape: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Record:
    """All readings of a check or a run.

    `values` is float32 with axes [steps, sites, metrics]. NaN means not read; a broken tensor reads
    inf. `facts` holds what is not a number at a place: wiring, optimizer settings, first bad op.
    """

    sites: tuple[Site, ...]
    metrics: tuple[str, ...]
    steps: NDArray[np.int64]
    values: NDArray[np.float32]
    facts: Facts = field(default_factory=dict)
    _places: dict[Role, list[int]] = field(init=False, repr=False, compare=False)
    _indices: dict[Role, NDArray[np.int64]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        expected = (len(self.steps), len(self.sites), len(self.metrics))
        if self.values.shape != expected:
            raise ValueError(
                f"values must be [steps, sites, metrics] = {list(expected)}, "
                f"got {list(self.values.shape)}"
            )
        places: dict[Role, list[int]] = {}
        for index, site in enumerate(self.sites):
            places.setdefault(site.role, []).append(index)
        object.__setattr__(self, "_places", places)
        indices = {role: np.array(mine) for role, mine in places.items()}
        object.__setattr__(self, "_indices", indices)

    def places(self, role: Role) -> list[int]:
        """Indices of the sites with this role, in recorded order."""
        return self._places.get(role, [])

    def sites_of(self, role: Role) -> list[Site]:
        """Sites with this role, in recorded order."""
        return [self.sites[index] for index in self.places(role)]

    def read(self, metric: str, role: Role) -> NDArray[np.float64]:
        """Read one metric at all sites of a role at the last step: [sites of that role]."""
        places = self._indices.get(role)
        if places is None or metric not in self.metrics or not len(self.steps):
            return np.full(len(self.places(role)), np.nan)
        read = self.values[-1, places, self.metrics.index(metric)]
        return np.asarray(read, dtype=np.float64)

    def series(self, metric: str, role: Role) -> NDArray[np.float64]:
        """Read one metric at all sites of a role in all steps: [steps, sites of that role]."""
        places = self.places(role)
        if metric not in self.metrics:
            return np.full((len(self.steps), len(places)), np.nan)
        read = self.values[:, places, self.metrics.index(metric)]
        return np.asarray(read, dtype=np.float64)

    def was_read(self, need: str) -> bool:
        """Whether a metric was read anywhere, or a fact is known."""
        if need in self.facts:
            return self.facts[need] is not None
        if need not in self.metrics:
            return False
        return bool(np.any(~np.isnan(self.values[:, :, self.metrics.index(need)])))


def record_of(
    readings: Sequence[tuple[Site, Mapping[str, float]]],
    facts: Facts | None = None,
    step: int = 0,
) -> Record:
    """Build a one-step Record from (site, {metric: value}) pairs; what is absent reads NaN."""
    columns: dict[str, int] = {}
    for _, row in readings:
        for name in row:
            columns.setdefault(name, len(columns))
    values = np.full((1, len(readings), len(columns)), np.nan)
    for place, (_, row) in enumerate(readings):
        for name, value in row.items():
            values[0, place, columns[name]] = value
    sites = tuple(site for site, _ in readings)
    return Record(sites, tuple(columns), np.array([step]), _as_float32(values), facts or {})


def _as_float32(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """Clamp finite values to the range of float32, so that only broken tensors read inf."""
    largest = float(np.finfo(np.float32).max)
    clamped = np.clip(values, -largest, largest)
    return np.where(np.isinf(values), values, clamped).astype(np.float32)
