"""Render a report as one file of HTML: no network, no server, and every name escaped."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from importlib import resources
from string import Template

from steadygrad.core.report import Report
from steadygrad.core.story import Story
from steadygrad.render.html.course import course
from steadygrad.render.html.depth import depth
from steadygrad.render.html.findings import findings
from steadygrad.render.html.heat import heat
from steadygrad.render.html.incidents import incidents
from steadygrad.render.html.markup import Markup, joined, safe, tag
from steadygrad.render.html.page import Block, Json, Subject
from steadygrad.render.html.ratios import ratios
from steadygrad.render.html.surroundings import surroundings, unseen
from steadygrad.render.html.trials import trials
from steadygrad.render.html.verdict import title, verdict
from steadygrad.render.json import as_dict

BLOCKS: tuple[Block, ...] = (
    verdict,
    findings,
    trials,
    depth,
    heat,
    course,
    ratios,
    incidents,
    unseen,
    surroundings,
)
"""The parts of the page, from top to bottom."""

STYLES = ("uplot/uPlot.min.css", "report.css")
SCRIPTS = ("uplot/uPlot.iife.min.js", "numbers.js", "charts.js", "heat.js", "report.js")


def html(
    report: Report,
    story: Story | None = None,
    pages: Mapping[str, str] | None = None,
    *,
    live: bool = False,
) -> str:
    """Render a report as a page that opens from a file.

    `story` adds what a run left besides its steps, `pages` what `steadygrad explain` says, by code.
    The page holds its data as JSON, and forbids itself every request; with `live`, it asks where it
    came from for news (see the command `serve`).
    """
    subject = Subject(report, story or Story(), pages or {})
    parts = [part for block in BLOCKS if (part := block(subject)) is not None]
    data: Json = {"report": as_dict(report), "live": live}
    for part in parts:
        data |= part.data
    scripts = [_asset(name) for name in SCRIPTS]
    return Template(_asset("template.html")).substitute(
        policy=_policy(scripts, live=live),
        title=safe(title(report)),
        styles=Markup("\n".join(_asset(name) for name in STYLES)),
        body=joined(part.markup for part in parts),
        data=embedded(data),
        scripts=joined((tag("script", Markup(one)) for one in scripts), "\n"),
    )


def embedded(data: Json) -> str:
    """Write JSON that can stand in an element `script`: nothing in it can end or open one."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _policy(scripts: list[str], *, live: bool) -> str:
    """Allow our scripts by their hashes, and nothing else: no request leaves the page."""
    hashes = (hashlib.sha256(one.encode()).digest() for one in scripts)
    allowed = " ".join(f"'sha256-{base64.b64encode(one).decode()}'" for one in hashes)
    connect = "'self'" if live else "'none'"
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        f"connect-src {connect}; base-uri 'none'; form-action 'none'"
    )


def _asset(name: str) -> str:
    return (resources.files("steadygrad.render") / "assets" / name).read_text(encoding="utf-8")
