"""The course of the training: loss, gradient, clipping, lr, and scale on one axis of steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steadygrad.core.record import Record
from steadygrad.render.html.markup import tag
from steadygrad.render.html.numbers import Floats, binned, listed, spans_decades, zoomable
from steadygrad.render.html.page import Json, Part, Subject, section
from steadygrad.render.words import UNICODE, clean

POINTS = 500  # of a line at most: what a screen can show; bands hold what is between
FLAGS = 40  # events that are marked
FLAGGED = ("finding", "nonfinite", "jump")
NOTE = (
    "One cursor for all. Drag to zoom, double-click to see all; with the keyboard, focus a chart: "
    "arrows move, + and - zoom, 0 shows all. Shaded is from the least to the largest of a stretch, "
    "the line its median; a cross at the top was not finite. Flags are what was found on the way."
)
Line = tuple[str, Floats]


def course(subject: Subject) -> Part | None:
    """Draw the numbers of the step itself."""
    record = subject.report.record
    if len(np.unique(record.steps)) < 3:
        return None
    starts = zoomable(record.steps, POINTS)
    found = ((title, read(record)) for title, read in CHARTS)
    drawn = [_chart(title, lines, starts) for title, lines in found if lines]
    if not drawn:
        return None
    data = {
        "steps": record.steps[starts].tolist(),
        "charts": drawn,
        "flags": [*_flags(subject)][:FLAGS],
    }
    place = tag("div", class_="charts", data_course="")
    return Part(section("course", "Course of the training", NOTE, place), {"course": data})


# --- Lines ---------------------------------------------------------------------------------------


def _lines(record: Record, metric: str, label: str = "") -> list[Line]:
    """Return a line [rows] for each optimizer, three at most, for which the metric was read."""
    series, sites = record.series(metric, "step"), record.sites_of("step")
    read = [place for place in range(len(sites)) if np.any(~np.isnan(series[:, place]))]
    several = len(sites) > 1
    whose = {n: f", {clean(sites[n].name, UNICODE)} {n + 1}" if several else "" for n in read}
    return [(f"{label or metric}{whose[place]}", series[:, place]) for place in read[:3]]


def _norms(record: Record) -> list[Line]:
    """Return the norm before and after clipping, and the threshold; only it if nothing clips."""
    named = {"norm": "before clipping", "norm_after": "after clipping", "max_norm": "threshold"}
    kept: list[Line] = []
    for metric, label in named.items():
        for name, values in _lines(record, metric, label):
            if not any(np.array_equal(values, one, equal_nan=True) for _, one in kept):
                kept.append((name, values))
    return kept if len(kept) > 1 else [("norm", values) for _, values in kept]


def _moving(record: Record, metric: str) -> list[Line]:
    """Return the lines of a metric, if any of them is not level."""
    lines = _lines(record, metric)
    return [] if all(map(_is_level, lines)) else lines


def _clipped(record: Record) -> list[Line]:
    """Return whether each step was clipped; a bin's mean is the rate."""
    norm, most = record.series("norm", "step"), record.series("max_norm", "step")
    bound = ~np.isnan(norm) & ~np.isnan(most)
    if not bound.any():
        return []
    clipped = np.where(bound, norm > most, np.nan)
    rows = np.full(len(clipped), np.nan)
    some = bound.any(axis=1)
    rows[some] = np.nanmax(clipped[some], axis=1)
    return [("clipped", rows)]


def _is_level(line: Line) -> bool:
    read = line[1][~np.isnan(line[1])]
    return not len(read) or bool(read.min() == read.max())


CHARTS: tuple[tuple[str, Callable[[Record], list[Line]]], ...] = (
    ("loss", partial(_lines, metric="loss")),
    ("gradient norm", _norms),
    ("share of steps clipped", _clipped),
    ("learning rate", partial(_lines, metric="lr")),
    ("loss scale", partial(_moving, metric="scale")),
    ("share of steps skipped", partial(_moving, metric="skipped")),
)
"""The charts, from top to bottom, and the lines of each; without lines there is no chart."""


def _chart(title: str, lines: list[Line], starts: NDArray[np.int64]) -> Json:
    share = title.startswith("share")
    together = np.concatenate([values for _, values in lines])
    series = [_share(*line, starts) if share else _series(*line, starts) for line in lines]
    return {
        "title": title,
        "log": not share and spans_decades(together),
        "share": share,
        "series": series,
    }


def _series(label: str, values: Floats, starts: NDArray[np.int64]) -> Json:
    drawn = binned(values, starts)
    series: Json = {"label": label, "values": listed(drawn.middle.tolist())}
    if drawn.is_wide:
        series |= {"low": listed(drawn.low.tolist()), "high": listed(drawn.high.tolist())}
    return {**series, "broken": np.flatnonzero(drawn.broken).tolist()}


def _share(label: str, values: Floats, starts: NDArray[np.int64]) -> Json:
    """Return the share of steps in each stretch where something happened."""
    read = ~np.isnan(values)
    happened = np.add.reduceat(np.where(read, values, 0.0), starts)
    of = np.add.reduceat(read.astype(np.float64), starts)
    rate = np.where(of > 0, happened / np.maximum(of, 1), np.nan)
    return {"label": label, "values": listed(rate.tolist()), "broken": []}


def _flags(subject: Subject) -> Iterator[Json]:
    """Mark each step at which something was found, once for each kind."""
    seen: set[tuple[int, str]] = set()
    for event in subject.story.events:
        label = _label(event)
        if event.get("kind") in FLAGGED and (event["step"], label) not in seen:
            seen.add((event["step"], label))
            yield {"step": event["step"], "label": label}


def _label(event: Mapping[str, Any]) -> str:  # JSON: see lines.Object
    if event.get("kind") == "finding":
        return clean(f"{event.get('code', '')} {event.get('name', '')}", UNICODE)
    return "gradient jumped" if event.get("kind") == "jump" else "not finite"
