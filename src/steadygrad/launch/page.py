"""The page of a report: HTML, with what the run left behind and what `explain` says."""

from __future__ import annotations

from pathlib import Path

from steadygrad.core.environment import versions
from steadygrad.core.report import Report
from steadygrad.core.stored import holds_a_run
from steadygrad.core.story import Story, story_of
from steadygrad.detectors import EVERY
from steadygrad.render.html import html


def page(report: Report, run: Path | None = None, *, live: bool = False) -> str:
    """Write the page of a report; with the directory of the run, also what lies there."""
    if run is None or not holds_a_run(run):
        return html(report, Story(versions=versions()), _pages(late=False))
    return html(report, story_of(run), _pages(late=True), live=live)


def _pages(*, late: bool) -> dict[str, str]:
    """Return the detectors' pages by code: over many steps, or before the first, where both are."""
    ordered = EVERY if late else tuple(reversed(EVERY))
    return {one.code: one.page for one in ordered}
