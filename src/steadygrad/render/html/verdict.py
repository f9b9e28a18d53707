"""The head of the page: the verdict in one line, and what it rests on."""

from __future__ import annotations

import math
from collections.abc import Iterator

from steadygrad import __version__
from steadygrad.core.finding import Severity
from steadygrad.core.report import Report
from steadygrad.render.html.markup import Markup, tag
from steadygrad.render.html.numbers import said
from steadygrad.render.html.page import SIGNS, Part, Subject, count


def verdict(subject: Subject) -> Part:
    """Say the verdict, of what, and what the look has cost."""
    report = subject.report
    kind, sign, words = _judged(report)
    line = tag(
        "h1",
        tag("span", sign, class_="sign", aria_hidden="true"),
        words,
        tag("span", report.target, class_="target"),
    )
    facts = [tag("div", tag("dt", name), tag("dd", value)) for name, value in _facts(report)]
    return Part(tag("header", line, tag("dl", *facts, class_="facts"), class_=f"verdict {kind}"))


def title(report: Report) -> str:
    """Name the page: what it is about, and the verdict."""
    return f"{report.target or 'steadygrad'}: {_judged(report)[2]}"


def _judged(report: Report) -> tuple[str, str, str]:
    """Return the kind of the verdict, its sign, and its words."""
    alarms = [one.severity for one in report.findings if one.severity > Severity.note]
    notes = len(report.findings) - len(alarms)
    if report.verdict == "blind":
        return "blind", "?", "blind: nothing could be looked at"
    if not alarms:
        return "healthy", "✓", f"healthy, {count(notes, 'note')}" if notes else "healthy"
    kinds = [one for one in (Severity.broken, Severity.risk) if one in alarms]
    each = " and ".join(f"{alarms.count(one)} {one.name}" for one in kinds)
    words = f"{count(len(alarms), 'finding')}, {each if len(kinds) > 1 else kinds[0].name}"
    return report.worst.name, SIGNS[report.worst], words


def _facts(report: Report) -> Iterator[tuple[str, str | Markup]]:
    cost = report.cost
    seconds = cost.get("seconds", math.nan)
    if "overhead" in cost:
        yield from _run(report, seconds)
    elif math.isfinite(seconds):
        yield "looked for", f"{said(seconds)} s"
    if math.isfinite(cost.get("relative_to_step", math.nan)):
        ratio = said(cost["relative_to_step"], 2)
        yield "cost", f"{ratio} \N{MULTIPLICATION SIGN} a forward and backward pass"
    yield "checks", f"{len(report.clear)} clear, {len(report.blind)} not seen"
    ended = str(report.record.facts.get("run", {}).get("ended", ""))
    if ended:
        yield "ended with", ended
    yield "steadygrad", __version__


def _run(report: Report, seconds: float) -> Iterator[tuple[str, str]]:
    steps = int(report.cost.get("steps", len(report.record.steps)))
    yield "steps", f"{steps:,}"
    if steps and seconds > 0:
        each, share = 1000 * seconds / steps, report.cost["overhead"]
        yield "time", f"{said(seconds)} s"
        yield "a step", f"{said(each)} ms"
        yield "measured overhead", f"{share:.1%} ({said(share * each, 2)} ms a step)"
