"""The depth profile: how large signal and gradient are, layer by layer, at first and now."""

from __future__ import annotations

import numpy as np

from steadygrad.core.record import Record, Site
from steadygrad.render.html.markup import tag
from steadygrad.render.html.numbers import Floats, listed
from steadygrad.render.html.page import Json, Part, Subject, section
from steadygrad.render.profile import grouped
from steadygrad.render.profile import mean as mean_of
from steadygrad.render.words import UNICODE, clean

MOST = 240  # layers; of more, neighbours are drawn as their mean
BAND = 1.0  # decades around 1 that are shaded: chosen by us, to guide the eye, not a verdict
NOTE = (
    "Root mean square of each layer's output (left) and of the gradient that arrives there, "
    "relative to the last layer (right), on a log axis. A level line is healthy: a slope is the "
    "picture of explosion or of vanishing. The band is one decade around 1."
)


def depth(subject: Subject) -> Part | None:
    """Draw the profile of a check, or of the first and the last sampled step of a run."""
    record = subject.report.record
    found = _of_check(record) or _of_run(record)
    if found is None:
        return None
    place = tag("div", class_="charts two", data_profile="")
    return Part(
        section("depth", "Signal and gradient through the depth", NOTE, place), {"profile": found}
    )


def _of_check(record: Record) -> Json | None:
    signal, gradient = record.read("log_rms", "unit"), record.read("cumulative", "unit")
    if not np.any(~np.isnan(signal)) and not np.any(~np.isnan(gradient)):
        return None
    start = "before the first step"
    return _json(record.sites_of("unit"), {start: signal}, {start: gradient})


def _of_run(record: Record) -> Json | None:
    rms, back = record.series("rms", "output"), record.series("grad_rms", "output")
    sampled = np.flatnonzero(np.any(~np.isnan(rms), axis=1))
    if not len(sampled):
        return None
    sites = record.sites_of("output")
    order = np.argsort([site.depth for site in sites], kind="stable")
    signals: dict[str, Floats] = {}
    gradients: dict[str, Floats] = {}
    for row in dict.fromkeys((int(sampled[0]), int(sampled[-1]))):
        name = f"step {record.steps[row]:,}"
        signals[name] = _decades(rms[row, order])
        gradients[name] = _relative(_decades(back[row, order]))
    return _json([sites[place] for place in order], signals, gradients)


def _decades(values: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log10(values)


def _relative(decades: Floats) -> Floats:
    """Return a gradient relative to the last layer's that is finite."""
    finite = decades[np.isfinite(decades)]
    return decades - (finite[-1] if len(finite) else 0.0)


def _json(sites: list[Site], signal: dict[str, Floats], gradient: dict[str, Floats]) -> Json:
    groups = grouped([False] * len(sites), MOST)
    names = [clean(sites[group[0]].name or sites[group[0]].kind, UNICODE) for group in groups]

    def panel(title: str, lines: dict[str, Floats]) -> Json:
        means = {name: [mean_of(line[group]) for group in groups] for name, line in lines.items()}
        series = [
            {
                "label": name,
                "values": listed(10.0**one if abs(one) < 300 else one for one in line),
                "broken": [place for place, one in enumerate(line) if one == np.inf],
            }
            for name, line in means.items()
        ]
        return {"title": title, "series": series}

    panels = [panel("signal RMS", signal), panel("gradient, 1 at the last layer", gradient)]
    return {"names": names, "band": [10**-BAND, 10**BAND], "panels": panels}
