"""The size of the update relative to the weight, by group of parameters, against a thousandth."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from steadygrad.core.record import Record, Site
from steadygrad.render.html.markup import tag
from steadygrad.render.html.numbers import Floats, listed, stretches
from steadygrad.render.html.page import Json, Part, Subject, section
from steadygrad.render.layers import block
from steadygrad.render.words import UNICODE, clean

RULE = 1e-3  # of an update to its weight: a rule of thumb, Karpathy 2022, "Building makemore 3"
GROUPS, POINTS = 7, 300
NOTE = (
    "Norm of the update over the norm of the weight, at sampled steps: the median of each group of "
    "weight matrices. The line at 0.001 is a rule of thumb for trainings from scratch: far above "
    "it the step is bold, far below it little is learned. Biases and scales are left out: they may "
    "start at zero."
)


def ratios(subject: Subject) -> Part | None:
    """Draw one line for each group."""
    record = subject.report.record
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = record.series("update", "weight") / record.series("weight", "weight")
    ratio[~np.isfinite(ratio) | (ratio <= 0)] = np.nan
    rows = np.flatnonzero(np.any(~np.isnan(ratio), axis=1))
    groups = _groups(record.sites_of("weight"))
    if len(np.unique(record.steps[rows])) < 3 or not groups:
        return None
    data = _json(record, ratio[rows], rows, groups)
    place = tag("div", class_="charts", data_ratios="")
    return Part(section("ratios", "Update to weight", NOTE, place), {"ratios": data})


def _groups(sites: list[Site]) -> dict[str, list[int]]:
    """Group matrices by block, or by what comes before its number, or in as many parts as fit."""
    matrices = [place for place, site in enumerate(sites) if len(site.shape) > 1]
    ways = (
        [block(sites[place].name.rpartition(".")[0]) for place in matrices],
        [sites[place].name.partition(".")[0] for place in matrices],
    )
    keys = next((keys for keys in ways if len(set(keys)) <= GROUPS), None)
    if keys is None:
        parts = np.array_split(np.arange(len(matrices)), GROUPS)
        return {
            _span(sites, matrices, part.tolist()): [matrices[n] for n in part] for part in parts
        }
    groups: dict[str, list[int]] = {}
    for key, place in zip(keys, matrices, strict=True):
        groups.setdefault(key or "the model", []).append(place)
    return groups


def _span(sites: list[Site], matrices: list[int], part: list[int]) -> str:
    return f"{sites[matrices[part[0]]].name} … {sites[matrices[part[-1]]].name}"


def _json(
    record: Record, ratio: Floats, rows: NDArray[np.int64], groups: dict[str, list[int]]
) -> Json:
    steps = record.steps[rows]
    starts = stretches(steps, POINTS)
    ends = [*starts[1:].tolist(), len(steps)]
    series = []
    for name, mine in groups.items():
        medians = [_median(ratio[a:b, mine]) for a, b in zip(starts.tolist(), ends, strict=True)]
        if np.isfinite(medians).any():
            series.append({"label": clean(name, UNICODE), "values": listed(medians), "broken": []})
    chart = {"title": "update to weight", "log": True, "rule": RULE, "series": series}
    return {"steps": steps[starts].tolist(), "charts": [chart]}


def _median(values: Floats) -> float:
    read = values[~np.isnan(values)]
    return float(np.median(read)) if len(read) else np.nan
