"""The layers of a running network: what was read last of each, as few rows as fit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steadygrad.core.finding import Severity
from steadygrad.core.record import Role, Site
from steadygrad.core.steps import METRICS, Row
from steadygrad.render.profile import grouped, mark_of

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer, or neighbours `until` another, with the worst that was found there.

    `gradient` and `weight` are norms of all its parameters together, `ratio` is that of the
    update's norm to the weight's, `dead` the largest share of dead units.
    """

    name: str
    until: str
    mark: Severity | None
    gradient: float
    ratio: float
    weight: float
    dead: float


def layers(
    sites: Sequence[Site], rows: Sequence[Row], marks: Mapping[str, Severity], most: int
) -> list[Layer]:
    """Read the layers in forward order: modules where they fit, else blocks, else neighbours."""
    weights = _forward([site for site in sites if site.role == "weight"])
    last = {name: _last(sites, rows, name) for name in ("grad", "weight", "update", "dead")}
    keys = _keys([site.name.rpartition(".")[0] for site, _ in weights], most)
    names = list(dict.fromkeys(keys))
    members: dict[str, list[int]] = {name: [] for name in names}
    for key, (_, place) in zip(keys, weights, strict=True):
        members[key].append(place)
    broken = {name: _mark(name, members[name], last["grad"], marks) for name in names}
    depths = {key: site.depth for key, (site, _) in zip(keys, weights, strict=True)}
    dead = _dead(sites, last["dead"], depths)
    return [
        _layer(mine, members, broken, last, dead)
        for mine in _neighbours(names, [broken[name] is not None for name in names], most)
    ]


def _forward(sites: Sequence[Site]) -> list[tuple[Site, int]]:
    """Order by depth; what has none stays behind what it followed."""
    depths: list[int] = []
    for site in sites:
        depths.append(site.depth if site.depth >= 0 else max(depths, default=-1))
    order = np.argsort(depths, kind="stable").tolist() if depths else []
    return [(sites[place], place) for place in order]


def _last(sites: Sequence[Site], rows: Sequence[Row], metric: str) -> Values:
    """Return the last reading of a metric at all sites of its role; NaN where there is none."""
    role: Role = METRICS[metric]
    values = np.full(sum(site.role == role for site in sites), np.nan)
    for row in reversed(rows):
        if row.kind in ("step", "median") and len(row.read.get(metric, ())):
            read = row.read[metric][: len(values)]
            values[: len(read)] = read
            return values
    return values


def _keys(modules: Sequence[str], most: int) -> list[str]:
    """Return the modules, or the blocks they stand in where there are too many."""
    if len(set(modules)) <= most:
        return list(modules)
    return [block(name) for name in modules]


def block(name: str) -> str:
    """Return a name up to its first number, `h.3` of `h.3.mlp.fc`; all of it where it has none."""
    parts = name.split(".")
    numbered = [place for place, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbered[0] + 1]) if numbered else name


def _neighbours(names: Sequence[str], marked: Sequence[bool], most: int) -> list[list[str]]:
    if not names:
        return []
    return [[names[place] for place in group] for group in grouped(marked, max(most, 2))]


def _mark(
    name: str, places: Sequence[int], gradients: Values, marks: Mapping[str, Severity]
) -> Severity | None:
    """Return the worst found in a layer or around it; a gradient that is infinite is broken."""
    if np.isinf(gradients[places]).any():
        return Severity.broken
    around = (marks[one] for one in marks if one and name.startswith(f"{one}."))
    return mark_of(name, marks) or max(around, default=None)


def _dead(sites: Sequence[Site], read: Values, depths: Mapping[str, int]) -> dict[str, float]:
    """Return the largest share of dead units among the outputs in each layer."""
    dead = dict.fromkeys(depths, math.nan)
    outputs = [site for site in sites if site.role == "output"]
    for site, share in zip(outputs, read.tolist(), strict=True):
        if (home := _home(site, depths)) is not None:
            dead[home] = float(np.fmax(dead[home], share))
    return dead


def _home(output: Site, depths: Mapping[str, int]) -> str | None:
    """Return the layer of an output: its own, the one around it, or the last one before it."""
    for key in (output.name, block(output.name)):
        if key in depths:
            return key
    before = [key for key in depths if 0 <= depths[key] <= output.depth]
    return max(before, key=lambda key: depths[key], default=None)


def _layer(
    mine: Sequence[str],
    members: Mapping[str, Sequence[int]],
    marks: Mapping[str, Severity | None],
    last: Mapping[str, Values],
    dead: Mapping[str, float],
) -> Layer:
    places = [place for name in mine for place in members[name]]
    gradient, weight, update = (
        _norm(last[metric][places]) for metric in ("grad", "weight", "update")
    )
    return Layer(
        mine[0],
        mine[-1] if len(mine) > 1 else "",
        max((mark for name in mine if (mark := marks[name]) is not None), default=None),
        gradient,
        update / weight if weight > 0 else math.nan,
        weight,
        float(np.fmax.reduce([dead[name] for name in mine])),
    )


def _norm(norms: Values) -> float:
    """Return the norm of tensors together from the norm of each; NaN where none was read."""
    read = norms[~np.isnan(norms)]
    return float(np.linalg.norm(read)) if read.size else math.nan
