"""What every block of the page is given, and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from steadygrad.core.finding import Severity
from steadygrad.core.report import Report
from steadygrad.core.story import Story
from steadygrad.render.html.markup import Markup, tag
from steadygrad.render.words import UNICODE

Json = dict[str, Any]  # JSON: strings, numbers, lists and dicts thereof

SIGNS = {one: UNICODE.severity[one] for one in Severity}


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """What the page is about; `pages` holds what `steadygrad explain` says, by code."""

    report: Report
    story: Story
    pages: Mapping[str, str]


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A part of the page: markup, and the data by name that the page's scripts draw in it."""

    markup: Markup
    data: Json = field(default_factory=dict)


Block = Callable[[Subject], Part | None]


def section(name: str, title: str, note: str, *inside: str) -> Markup:
    """Write a section with its heading and a line that says how to read it."""
    said = [tag("p", note, class_="note")] if note else []
    heading = tag("h2", title, id=f"{name}-title")
    return tag("section", heading, *said, *inside, id=name, aria_labelledby=f"{name}-title")


def badge(severity: Severity) -> Markup:
    """Write a severity as a sign and a word, never as a colour alone."""
    sign = tag("span", SIGNS[severity], class_="sign", aria_hidden="true")
    return tag("span", sign, severity.name, class_=f"badge {severity.name}")


def count(number: int, noun: str) -> str:
    """Say how many."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
