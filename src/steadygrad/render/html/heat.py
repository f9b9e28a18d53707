"""The heat maps: layer by step, for the gradient, the update, and the dead share."""

from __future__ import annotations

import base64
import math

import numpy as np
from numpy.typing import NDArray

from steadygrad.core.record import Record, Site
from steadygrad.render.html.markup import tag
from steadygrad.render.html.numbers import Floats, stretches
from steadygrad.render.html.page import Json, Part, Subject, section
from steadygrad.render.profile import grouped
from steadygrad.render.words import UNICODE, clean

ROWS, COLUMNS, CELLS = 160, 400, 40_000  # of a map at most: 2 bytes a cell, 107 kB as base64
LEVELS = 65_000  # of a cell: below a thousandth of a decade for a map of 20 decades
NOT_READ, ZERO, FIRST, BROKEN = 0, 1, 2, 65_535  # values of a cell with a meaning of their own
NOTE = (
    "Each row is a layer in forward order, each column a stretch of steps; a cell is the largest "
    "value there. What is not finite is marked with a cross, whatever the color. Point at a cell, "
    "or focus the map and use the arrow keys."
)


def heat(subject: Subject) -> Part | None:
    """Draw the maps of what was read in more than two steps."""
    maps = [one for one in _maps(subject.report.record) if one is not None]
    if not maps:
        return None
    return Part(
        section("heat", "Layers over steps", NOTE, tag("div", data_heat="")), {"maps": maps}
    )


def _maps(record: Record) -> list[Json | None]:
    layers = _layers(record.sites_of("weight"))
    gradient, update, weight = (
        _norms(record, name, layers) for name in ("grad", "update", "weight")
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(weight > 0, update / weight, np.nan)
    outputs = _forward(record.sites_of("output"))
    dead = record.series("dead", "output")[:, [place for _, place in outputs]]
    names, of = list(layers), [name for name, _ in outputs]
    return [
        _map(
            record,
            names,
            gradient,
            {"key": "grad", "title": "gradient norm", "log": True, "timed": True},
        ),
        _map(record, names, ratio, {"key": "update", "title": "update to weight", "log": True}),
        _map(record, of, dead, {"key": "dead", "title": "dead share", "log": False}),
    ]


def _forward(sites: list[Site]) -> list[tuple[str, int]]:
    """Return names and places in forward order; what has no depth comes last."""
    order = sorted(range(len(sites)), key=lambda n: (sites[n].depth < 0, sites[n].depth))
    return [(sites[place].name, place) for place in order]


def _layers(sites: list[Site]) -> dict[str, list[int]]:
    """Return the places of the parameters of each module, in forward order."""
    layers: dict[str, list[int]] = {}
    for name, place in _forward(sites):
        layers.setdefault(name.rpartition(".")[0] or name, []).append(place)
    return layers


def _norms(record: Record, metric: str, layers: dict[str, list[int]]) -> Floats:
    """Return the norm of each layer's tensors together [rows, layers]; NaN where none was read."""
    squares = record.series(metric, "weight") ** 2
    joined = np.full((len(squares), len(layers)), np.nan)
    for column, places in enumerate(layers.values()):
        mine = squares[:, places]
        read = ~np.all(np.isnan(mine), axis=1)
        joined[read, column] = np.sqrt(np.nansum(mine[read], axis=1))
    return joined


def _map(record: Record, names: list[str], values: Floats, about: Json) -> Json | None:
    """Make a map of values [rows, layers]."""
    rows = np.flatnonzero(np.any(~np.isnan(values), axis=1))
    columns = np.flatnonzero(np.any(~np.isnan(values), axis=0)).tolist()
    if len(np.unique(record.steps[rows])) < 3:
        return None
    groups = grouped([False] * len(columns), ROWS)
    steps = record.steps[rows]
    starts = stretches(steps, min(COLUMNS, CELLS // len(groups)))
    places = [[columns[one] for one in group] for group in groups]
    cells = _largest(values[rows], places, starts)
    low, high = _span(cells, about["log"])
    return {
        **about,
        "names": [_name(names[group[0]], names[group[-1]]) for group in places],
        "steps": steps[starts].tolist(),
        "last": int(steps[-1]),
        "low": low,
        "high": high,
        "cells": _packed(cells, low, high, about["log"]),
    }


def _name(first: str, last: str) -> str:
    first, last = clean(first, UNICODE), clean(last, UNICODE)
    return first if first == last else f"{first} … {last}"


def _largest(values: Floats, places: list[list[int]], starts: NDArray[np.int64]) -> Floats:
    """Return the largest of each cell [layers, stretches]; NaN where nothing was read."""
    joined = np.stack([np.fmax.reduce(values[:, group], axis=1) for group in places])
    return np.asarray(np.fmax.reduceat(joined, starts, axis=1), dtype=np.float64)


def _span(cells: Floats, log: bool) -> tuple[float, float]:
    """Return the ends of the colours: of all that is finite, in decades on a log axis."""
    read = cells[np.isfinite(cells) & (cells > 0)]
    if not log:
        return 0.0, 1.0
    if not len(read):
        return -1.0, 0.0
    low, high = math.log10(float(read.min())), math.log10(float(read.max()))
    return (low, high) if high - low > 0.1 else (low - 0.5, high + 0.5)


def _packed(cells: Floats, low: float, high: float, log: bool) -> str:
    """Pack cells, row by row, as base64 of little-endian 16-bit numbers."""
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = (np.log10(cells) if log else cells) - low
        levels = np.clip(scaled / (high - low), 0, 1) * (LEVELS - 1) + FIRST
        packed = np.nan_to_num(levels, nan=NOT_READ).astype("<u2")
    packed[np.isnan(cells)] = NOT_READ
    packed[cells == 0] = ZERO
    packed[np.isinf(cells)] = BROKEN
    return base64.b64encode(packed.tobytes()).decode("ascii")
