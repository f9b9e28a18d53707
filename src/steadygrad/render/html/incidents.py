"""The incidents: the steps before each, the first bad tensor, and the chain to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from steadygrad.core.record import Record, Site
from steadygrad.core.steps import METRICS
from steadygrad.core.story import Arrays, Incident
from steadygrad.render.html.course import FLAGGED
from steadygrad.render.html.markup import Markup, joined, table, tag
from steadygrad.render.html.numbers import Floats, said
from steadygrad.render.html.page import Part, Subject, count, section
from steadygrad.render.html.sparks import spark

LAST = 6  # steps of the ring that are told in numbers
TOP = 5  # tensors that are named
TOLD = ("loss", "norm", "norm_after", "lr", "scale")
Event = Mapping[str, Any]  # JSON: see lines.Object
At = Callable[[str], Floats]


def incidents(subject: Subject) -> Part | None:
    """Tell every step of which something was kept."""
    if not subject.story.incidents:
        return None
    told = [_article(one, subject) for one in subject.story.incidents]
    note = "What was kept of the steps that went wrong: what broke first, and the steps before."
    return Part(section("incidents", "Incidents", note, *told))


def _article(incident: Incident, subject: Subject) -> Markup:
    events = [one for one in subject.story.events if one["step"] == incident.step]
    flagged = [one for one in events if one["kind"] in FLAGGED]
    sites = [site for site in subject.report.record.sites if site.role == "weight"]
    at = _at(incident, subject.report.record)
    chain = [*_chain(incident, at, flagged, sites)]
    return tag(
        "article",
        tag("h3", f"Step {incident.step:,}"),
        *([tag("ol", *(tag("li", one) for one in chain), class_="chain")] if chain else []),
        *_ring(incident, at),
        *_again(incident, subject),
        class_="incident",
    )


# --- The chain -----------------------------------------------------------------------------------


def _chain(incident: Incident, at: At, events: list[Event], sites: list[Site]) -> Iterator[Markup]:
    """Tell what was first, and what followed, in the order in which it happened."""
    for one in events:
        if one["kind"] == "finding":
            listed = one.get("where")
            where = ", ".join(map(str, listed[:3])) if isinstance(listed, list | tuple) else "?"
            yield tag(
                "span",
                tag("b", f"{one.get('code')} {one.get('name')}"),
                f" at {where}: {one.get('says')}",
            )
        elif one["kind"] == "nonfinite":
            yield tag("span", "not finite, and the cause was not found: ", str(one.get("says", "")))
        else:
            yield tag("span", "the gradient's norm jumped")
    loss, skipped = at("loss"), at("skipped")
    if len(loss):
        yield tag("span", f"the loss: {said(float(loss[0]))}")
    yield from _gradients(incident, at("grad")[: len(sites)], sites)
    if len(skipped):
        yield tag("span", "the step was skipped" if skipped[0] == 1 else "the step was made")


def _gradients(incident: Incident, grads: Floats, sites: list[Site]) -> Iterator[Markup]:
    read = np.flatnonzero(~np.isnan(grads))
    if not len(read):
        return
    broken = [place for place in read.tolist() if np.isinf(grads[place])]
    backward = sorted(broken, key=lambda place: -sites[place].depth)
    if backward:
        names = joined((tag("code", sites[place].name) for place in backward[:TOP]), ", ")
        rest = f" and {len(broken) - TOP} more" if len(broken) > TOP else ""
        many = f"{len(broken)} of {count(len(read), 'gradient')} not finite; on the way back: "
        yield tag("span", many, names, rest)
        return
    yield from _growth(incident, grads, sites)


def _growth(incident: Incident, grads: Floats, sites: list[Site]) -> Iterator[Markup]:
    """Name the tensors whose gradient grew most over the median of the ring."""
    ring = incident.ring.get("grad")
    if ring is None:
        return
    before = ring[incident.ring["step"] < incident.step, : len(grads)].astype(np.float64)
    if len(before) < 3 or before.shape[1] < len(grads):
        return
    usual = np.array(
        [np.median(one[np.isfinite(one)]) if np.isfinite(one).any() else np.nan for one in before.T]
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        growth = np.nan_to_num(grads / usual, nan=0.0, posinf=0.0)
    top = np.argsort(-growth)[:TOP].tolist()
    told = (
        joined(
            [
                tag("code", sites[place].name),
                f" \N{MULTIPLICATION SIGN}{said(float(growth[place]))}",
            ]
        )
        for place in top
        if growth[place] > 1
    )
    yield tag("span", "gradients that grew most over their median before: ", joined(told, ", "))


def _at(incident: Incident, record: Record) -> At:
    """Return how a metric [sites] is read in the step itself: from the ring, or from the record.

    A ring may end before the step, and a record may have grown too coarse to hold it.
    """

    def at(metric: str) -> Floats:
        steps = incident.ring.get("step", np.zeros(0))
        rows = np.flatnonzero(steps == incident.step)
        if metric in incident.ring and len(rows):
            return np.asarray(incident.ring[metric][rows[-1]], dtype=np.float64)
        mine = record.series(metric, METRICS[metric])[record.steps == incident.step]
        return mine[0] if len(mine) == 1 and mine.shape[1] else np.zeros(0)

    return at


# --- The ring ------------------------------------------------------------------------------------


def _ring(incident: Incident, at: At) -> Iterator[Markup]:
    ring = incident.ring
    shown = [name for name in TOLD if name in ring and not _is_dull(name, ring)]
    if not shown:
        return
    drawn = [
        spark(ring[name][:, 0].astype(np.float64), f"{name}, {count(len(ring['step']), 'step')}")
        for name in shown
        if name in ("loss", "norm")
    ]
    yield tag("div", *drawn, class_="sparks")
    yield table(["step", *map(_spoken, shown)], _last(incident, at, shown), class_="numeric")


def _last(incident: Incident, at: At, shown: list[str]) -> list[list[str]]:
    """Return the last steps in numbers; the bad one among them, if it was read."""
    ring, steps = incident.ring, incident.ring["step"].tolist()
    read = [(step, [float(ring[name][row, 0]) for name in shown]) for row, step in enumerate(steps)]
    if incident.step not in steps and all(len(at(name)) for name in shown):
        read.append((incident.step, [float(at(name)[0]) for name in shown]))
    return [[f"{step:,}", *(said(one, 4) for one in numbers)] for step, numbers in read[-LAST:]]


def _spoken(metric: str) -> str:
    return metric.replace("_", " ")


def _is_dull(name: str, ring: Arrays) -> bool:
    """Whether a column says nothing: no loss scale, or no clipping."""
    if name == "scale":
        return bool(np.all(ring[name] == 1))
    return name == "norm_after" and np.array_equal(ring[name], ring["norm"], equal_nan=True)


def _again(incident: Incident, subject: Subject) -> Iterator[Markup]:
    if not incident.path:
        return
    script = " ".join(subject.story.command) or "train.py"
    yield tag("p", "To compute it again:", class_="note")
    yield tag("pre", tag("code", f"steadygrad replay {incident.path} {script}"), tabindex="0")
