"""The findings, causes first: where, the evidence, the mechanism, and what to try."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from steadygrad.core.finding import Advice, Finding, Severity
from steadygrad.core.record import Record
from steadygrad.core.report import Report
from steadygrad.core.steps import METRICS
from steadygrad.core.trial import Cure
from steadygrad.render.code import broken
from steadygrad.render.html.markup import Markup, joined, safe, tag
from steadygrad.render.html.numbers import Floats
from steadygrad.render.html.page import Part, Subject, badge, section
from steadygrad.render.html.sparks import spark
from steadygrad.render.trials import tried
from steadygrad.render.words import UNICODE, evidence

CODE = 100  # letters of a line of code, where it can be broken
FEW = 6  # places that are named before the rest is folded
SURE = {
    "measured": "read off the numbers",
    "likely": "theory and numbers agree, other causes remain",
    "possible": "a hypothesis: try it",
}
SERIES = {"loss": "loss", "lr": "lr", "optimizer": "norm", "data": "loss", "target": "loss"}


def findings(subject: Subject) -> Part | None:
    """Tell every finding; notes stand at the end."""
    report = subject.report
    if not report.findings:
        return None
    told = [_article(found, subject) for found in report.findings]
    return Part(section("findings", "Findings", "", *told))


def _article(found: Finding, subject: Subject) -> Markup:
    rows = [*_rows(found, subject)]
    return tag(
        "article",
        _heading(found),
        tag("p", found.says, class_="says"),
        tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in rows)),
        class_=f"finding {found.severity.name}",
    )


def _heading(found: Finding) -> Markup:
    name = tag("h3", tag("code", found.code), " ", found.name)
    sure = tag("span", found.confidence, class_="sure", title=SURE[found.confidence])
    return tag("div", name, badge(found.severity), sure, class_="heading")


def _rows(found: Finding, subject: Subject) -> Iterator[tuple[str, Markup]]:
    alarm = found.severity > Severity.note
    numbers = [tag("li", one) for one in evidence(found, UNICODE)]
    rows: tuple[tuple[str, Markup | None], ...] = (
        ("where", _where(found)),
        ("when", _when(found)),
        ("evidence", tag("ul", *numbers, class_="numbers") if numbers else None),
        ("picture", _spark(found, subject.report.record)),
        ("mechanism", joined(_mechanism(found, subject))),
        ("confidence", safe(f"{found.confidence}: {SURE[found.confidence]}") if alarm else None),
        ("ruled out", _listed(found.ruled_out)),
        ("to try", joined(_advice(one, subject.report.cure) for one in found.try_next)),
    )
    return ((name, value) for name, value in rows if value)


def _when(found: Finding) -> Markup | None:
    first, last = found.steps
    if last <= 0:
        return None
    return safe(f"step {first:,}" if first == last else f"steps {first:,} to {last:,}")


def _listed(sentences: tuple[str, ...]) -> Markup | None:
    return tag("ul", *(tag("li", one) for one in sentences)) if sentences else None


def _where(found: Finding) -> Markup:
    names = [tag("code", name or "the model") for name in found.where]
    shown = joined(names[:FEW], ", ")
    if len(names) <= FEW:
        return shown
    more = tag("summary", f"and {len(names) - FEW} more")
    return joined([shown, " ", tag("details", more, joined(names[FEW:], ", "))])


def _advice(advice: Advice, cure: Cure | None) -> Markup:
    """Write a remedy with its lines, and what its trial has shown."""
    said = tried(advice, cure) or "not verified by a trial"
    head = tag("p", tag("b", advice.remedy), tag("span", said, class_="sure"))
    patch = "\n".join(broken(advice.patch, CODE))
    lines = [tag("pre", tag("code", patch), tabindex="0")] if patch else []
    return tag("div", head, *lines, class_="advice")


# --- Mechanism -----------------------------------------------------------------------------------


def _mechanism(found: Finding, subject: Subject) -> Iterator[Markup]:
    """Tell what the finding explains, and how its illness works in general."""
    told = [
        tag("li", tag("code", one.code), " ", one.name, ": ", one.says)
        for one in _explained(found, subject.report)
    ]
    if told:
        yield tag("p", "It explains:")
        yield tag("ul", *told)
    page = subject.pages.get(found.code, "")
    if page:
        yield tag(
            "details",
            tag("summary", f"How {found.name} is found, and when that is wrong"),
            *_prose(page),
        )


def _explained(found: Finding, report: Report) -> list[Finding]:
    """Symptoms are folded by code: they stand under the first root of their code."""
    first = next(one for one in report.findings if one.code == found.code)
    mine = [one for one in report.folded if one.because == (found.code,)]
    return mine if found is first else []


def _prose(page: str) -> Iterator[Markup]:
    """Write the paragraphs of a detector's page, with its code as code."""
    for paragraph in re.split(r"\n\s*\n", page):
        if paragraph.startswith("    "):
            yield tag("pre", tag("code", paragraph))
            continue
        pieces = re.split(r"`([^`]+)`", " ".join(paragraph.split()))
        yield tag("p", *(tag("code", one) if n % 2 else one for n, one in enumerate(pieces)))


# --- Sparklines ----------------------------------------------------------------------------------


def _spark(found: Finding, record: Record) -> Markup | None:
    """Draw what the finding is about over the steps, or along the depth where there is one step."""
    if len(record.steps) < 3:
        return _along_depth(found, record)
    for name in found.where:
        series, label = _over_steps(name, record)
        if np.isfinite(series).sum() > 2 or np.isinf(series).any():
            return spark(series, label)
    return None


def _over_steps(name: str, record: Record) -> tuple[Floats, str]:
    """Return the series of a place: its gradient, its output, or the step's own number."""
    if name in SERIES:
        metric = SERIES[name]
        series = record.series(metric, "step")
        return (series[:, 0] if series.shape[1] else series.ravel()), metric
    for metric in ("grad", "rms"):
        names = [site.name for site in record.sites_of(METRICS[metric])]
        mine = [n for n, one in enumerate(names) if one == name or one.startswith(f"{name}.")]
        if mine and name:
            what = "gradient norm" if metric == "grad" else "output RMS"
            return record.series(metric, METRICS[metric])[:, mine[0]], f"{what} of {names[mine[0]]}"
    return np.zeros(0), ""


def _along_depth(found: Finding, record: Record) -> Markup | None:
    units = {site.name for site in record.sites_of("unit")}
    gradient = record.read("cumulative", "unit")
    if not units & set(found.where) or np.isfinite(gradient).sum() < 3:
        return None
    return spark(gradient, "gradient in decades, from the first unit to the last")
