"""The size of the update relative to the weight, by group of parameters, against a thousandth."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from steadygrad.core.record import Record, Site
from steadygrad.render.html.markup import tag
from steadygrad.render.html.numbers import Floats, listed, zoomable
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
    """Group weight matrices by block; where those are many, by neighboring blocks."""
    blocks: dict[str, list[int]] = {}
    for place, site in enumerate(sites):
        if len(site.shape) > 1:
            key = block(site.name.rpartition(".")[0]) or "the model"
            blocks.setdefault(key, []).append(place)
    parts = np.array_split(np.arange(len(blocks)), min(GROUPS, len(blocks) or 1))
    names = list(blocks)
    groups = [[names[one] for one in part] for part in parts if len(part)]
    return {_name(mine): [place for key in mine for place in blocks[key]] for mine in groups}


def _name(blocks: list[str]) -> str:
    """Name neighbors by their ends: `layers.0 … 3`."""
    first, last = blocks[0], blocks[-1]
    if first == last:
        return first
    family, _, own = last.rpartition(".")
    return f"{first} … {own if first.rpartition('.')[0] == family else last}"


def _json(
    record: Record, ratio: Floats, rows: NDArray[np.int64], groups: dict[str, list[int]]
) -> Json:
    steps = record.steps[rows]
    starts = zoomable(steps, POINTS)
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
