"""A run as columns: a number for each row and each place."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from steadygrad.core.record import Site
from steadygrad.core.steps import METRICS, Array, Row
from steadygrad.core.stored import Stored

Columns = dict[str, Array]
ROOT = "model"  # what the outermost module is called, whose qualified name is empty


def columns(run: Stored) -> Columns:
    """Return float32 [rows] by `metric/site`, in the order of `METRICS`; NaN was not read.

    What was read nowhere has no column. A metric of the step has the site's name only where there
    is more than one optimizer.
    """
    found: Columns = {}
    for metric in METRICS:
        names = _names(run.sites, metric)
        table = _table(run.rows, metric, len(names))
        for place in np.flatnonzero(np.any(~np.isnan(table), axis=0)).tolist():
            found[names[place]] = table[:, place]
    return found


def numbers(row: Row, sites: Sequence[Site]) -> dict[str, float]:
    """Return what was read in one row, by the names of its columns."""
    found: dict[str, float] = {}
    for metric in row.read.keys() & METRICS.keys():
        pairs = zip(_names(sites, metric), row.read[metric].tolist(), strict=False)
        found |= {name: value for name, value in pairs if not math.isnan(value)}
    return found


def index(run: Stored) -> tuple[NDArray[np.int64], NDArray[np.float64], list[str]]:
    """Return step, seconds since the run began, and kind of each row."""
    steps = np.array([row.step for row in run.rows], dtype=np.int64)
    seconds = np.array([row.seconds for row in run.rows], dtype=np.float64)
    return steps, seconds, [row.kind for row in run.rows]


def _table(rows: Sequence[Row], metric: str, width: int) -> NDArray[np.float32]:
    table = np.full((len(rows), width), np.nan, np.float32)
    for line, row in zip(table, rows, strict=True):
        read = row.read.get(metric, np.zeros(0, np.float32))[:width]
        line[: len(read)] = read
    return table


def _names(sites: Sequence[Site], metric: str) -> list[str]:
    """Return the names of a metric's columns, numbered where two sites have the same name."""
    role = METRICS[metric]
    names = [*_numbered(site.name or ROOT for site in sites if site.role == role)]
    alone = role == "step" and len(names) == 1
    return [metric] if alone else [f"{metric}/{name}" for name in names]


def _numbered(names: Iterator[str]) -> Iterator[str]:
    seen: set[str] = set()
    for name in names:
        number, unique = 1, name
        while unique in seen:
            number += 1
            unique = f"{name} {number}"
        seen.add(unique)
        yield unique
