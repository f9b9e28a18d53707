"""The foot of the page: what was not seen, with what it was made, and how to make it again."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from itertools import groupby
from operator import attrgetter

from steadygrad.core.report import Blind
from steadygrad.render.html.markup import Markup, joined, table, tag
from steadygrad.render.html.numbers import said
from steadygrad.render.html.page import Part, Subject, count, section

SETTINGS = (
    "name",
    "type",
    "lr",
    "momentum",
    "betas",
    "eps",
    "weight_decay",
    "parameters",
    "dtypes",
)


def unseen(subject: Subject) -> Part | None:
    """Tell which checks were blind, and why; and which are clear."""
    report = subject.report
    if not report.blind and not report.clear:
        return None
    ranked = sorted(report.blind, key=attrgetter("why", "code"))
    rows = [
        [
            why,
            joined(map(_check, group), ", "),
        ]
        for why, group in groupby(ranked, key=attrgetter("why"))
    ]
    inside = [table(["why", "checks"], rows, class_="words")] if rows else []
    clear = joined((tag("code", code) for code in report.clear), " ")
    if report.clear:
        inside.append(
            tag(
                "details",
                tag("summary", f"{count(len(report.clear), 'check')} clear"),
                tag("p", clear),
            )
        )
    note = "Silence is not health: these could not look." if rows else ""
    return Part(section("unseen", "Not seen" if rows else "Clear", note, *inside))


def _check(blind: Blind) -> Markup:
    return joined([tag("code", blind.code), " ", blind.name])


def surroundings(subject: Subject) -> Part:
    """Tell versions, optimizers, and the commands that repeat this."""
    return Part(section("surroundings", "Environment", "", *_environment(subject)))


def _environment(subject: Subject) -> Iterator[Markup]:
    story, facts = subject.story, subject.report.record.facts
    if story.versions:
        rows = [tag("div", tag("dt", name), tag("dd", one)) for name, one in story.versions.items()]
        if story.started:
            when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(story.started))
            rows.append(tag("div", tag("dt", "started"), tag("dd", when)))
        yield tag("dl", *rows, class_="facts")
    settings = facts.get("optimizers")
    if isinstance(settings, list) and settings:
        yield _optimizers([one for one in settings if isinstance(one, dict)])
    if commands := [*_commands(subject)]:
        again = bool(story.command or story.path)
        words = "To repeat it, and to read more:" if again else "To read more:"
        yield tag("p", words, class_="note")
        yield tag("pre", tag("code", "\n".join(commands)), tabindex="0")


def _optimizers(settings: list[dict[str, object]]) -> Markup:
    heads = [name for name in SETTINGS if any(name in one for one in settings)]
    rows = [[_said(one.get(name)) for name in heads] for one in settings]
    return table([name.replace("_", " ") for name in heads], rows, class_="settings")


def _said(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_said, value))
    if isinstance(value, float):
        return said(value, 4)
    return "" if value is None else str(value)


def _commands(subject: Subject) -> Iterator[str]:
    story = subject.story
    if story.command:
        yield f"steadygrad run {shlex.join(story.command)}"
    if story.path:
        yield f"steadygrad report {shlex.quote(story.path)} --format html -o report.html"
    yield from (
        f"steadygrad explain {one}"
        for one in dict.fromkeys(f.code for f in subject.report.findings)
    )
