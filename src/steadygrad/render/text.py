"""Render a report for a terminal: the verdict first, then causes, depth profile, blind spots."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from operator import attrgetter

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from steadygrad.core.finding import Advice, Finding, Severity
from steadygrad.core.report import Report
from steadygrad.core.trial import Confirmation
from steadygrad.render.code import broken, whole
from steadygrad.render.profile import STYLES, profile
from steadygrad.render.trials import besides, loss_of, proof_of, table, tried
from steadygrad.render.words import ASCII, UNICODE, Glyphs, clean, cut, evidence, marks, place

NARROW = 56  # cells below which labels stand above what they name
MEASURE = 100  # cells of a line of words at most: longer ones are hard to follow
LABEL = 12  # cells of the column of labels
MANY = 8  # blind checks of one reason that are still told by name


@dataclass(frozen=True, slots=True)
class Page:
    """What is drawn on: so many cells a line, with these signs."""

    width: int
    glyphs: Glyphs

    @property
    def narrow(self) -> bool:
        """Whether labels stand above what they name."""
        return self.width < NARROW

    @property
    def indent(self) -> int:
        """Cells before the lines of a labelled part."""
        return 4 if self.narrow else 2 + LABEL

    @property
    def room(self) -> int:
        """Cells of the lines of a labelled part."""
        return min(self.width, MEASURE) - self.indent

    def wrapped(self, words: str, indent: int) -> list[str]:
        """Break words into lines that fit beside an indent; one word alone may be broken."""
        console = Console(file=io.StringIO(), width=self.width)
        lines = Text(words).wrap(console, min(self.width, MEASURE) - indent)
        return [line.plain.rstrip() for line in lines]

    def joined(self, items: Iterable[str]) -> list[str]:
        """Fill the lines of a labelled part with short items, none of them broken."""
        sign = f" {self.glyphs.between} "
        lines: list[str] = []
        for item in items:
            longer = f"{lines[-1]}{sign}{item}" if lines else item
            if lines and cell_len(longer) <= self.room:
                lines[-1] = longer
            else:
                lines += self.wrapped(item, self.indent)
        return lines

    def clean(self, words: str) -> str:
        """Make what came from the user's program harmless."""
        return clean(words, self.glyphs)


Block = Callable[[Report, Page], Iterable[Text]]


def text(report: Report, width: int = 80, color: bool = False, ascii_only: bool = False) -> str:
    """Render a report in lines of `width` cells (40 or more).

    With `color`, ANSI sequences are added and no sign is lost; `ascii_only` is for streams that
    cannot write the signs (see `words.glyphs_for`). Long lines of code may be wider than asked for,
    so that they can be pasted.
    """
    page = Page(max(width, 40), ASCII if ascii_only else UNICODE)
    blocks: tuple[Block, ...] = (
        _verdict,
        _causes,
        _notes,
        _tried,
        _prescribed,
        _profile,
        _unseen,
        _cost,
    )
    drawn = [list(block(report, page)) for block in blocks]
    lines = chain.from_iterable([*block, Text()] for block in drawn if block)
    return _painted(list(lines)[:-1], page.width, color)


def _painted(lines: Sequence[Text], width: int, color: bool) -> str:
    """Write lines with or without ANSI sequences, whatever the terminal and the environment say."""
    stream = io.StringIO()
    console = Console(
        file=stream,
        width=width,
        height=100,
        color_system="standard" if color else None,
        force_terminal=color,
        force_jupyter=False,
        no_color=not color,
        legacy_windows=False,
        emoji=False,
        highlight=False,
        markup=False,
    )
    for line in lines:
        console.print(line, soft_wrap=True)
    return stream.getvalue()


# --- Verdict -------------------------------------------------------------------------------------


def _verdict(report: Report, page: Page) -> Iterable[Text]:
    words, sign, style = _judgement(report, page.glyphs)
    head = Text(f"{sign} {words}", f"bold {style}")
    target = page.clean(report.target)
    if target:
        gap = "  " if cell_len(head.plain + target) + 2 <= page.width else "\n  "
        head.append(f"{gap}{target}", "not bold default")
    yield from head.split("\n")


def _judgement(report: Report, glyphs: Glyphs) -> tuple[str, str, str]:
    alarms = [one for one in report.findings if one.severity > Severity.note]
    notes = len(report.findings) - len(alarms)
    if alarms:
        words = ", ".join(_counted(alarms))
        return words, glyphs.severity[report.worst], STYLES[report.worst]
    if report.verdict == "blind":
        return "blind: nothing could be looked at", "?", "yellow"
    words = f"healthy, {_plural(notes, 'note')}" if notes else "healthy"
    return words, glyphs.healthy, "green"


def _counted(alarms: Sequence[Finding]) -> Iterable[str]:
    worst_first = sorted({one.severity for one in alarms}, reverse=True)
    yield _plural(len(alarms), "finding")
    if len(worst_first) > 1:
        for severity in worst_first:
            yield f"{sum(one.severity == severity for one in alarms)} {severity.name}"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


# --- Findings ------------------------------------------------------------------------------------


def _causes(report: Report, page: Page) -> Iterable[Text]:
    alarms = [one for one in report.findings if one.severity > Severity.note]
    for number, found in enumerate(alarms):
        if number:
            yield Text()
        yield from _cause(found, report, page)


def _cause(found: Finding, report: Report, page: Page) -> Iterable[Text]:
    yield from _title(found, report, page)
    yield from _indented(page.wrapped(page.clean(found.says), 2), 2)
    details = list(_details(found, report, page))
    yield from [Text(), *details] if details else []


def _details(found: Finding, report: Report, page: Page) -> Iterable[Text]:
    yield from _labelled("evidence", page.joined(evidence(found, page.glyphs)), page)
    symptoms = [_symptom(one, page) for one in _explained(found, report)]
    yield from _labelled("explains", [cut(one, page.room, page.glyphs) for one in symptoms], page)
    reasons = (page.wrapped(page.clean(one), page.indent) for one in found.ruled_out)
    yield from _labelled("ruled out", list(chain(*reasons)), page)
    for number, advice in enumerate(found.try_next):
        told = tried(advice, report.cure)
        yield from _advice("or" if number else "try", advice, told, page)


def _explained(found: Finding, report: Report) -> Iterable[Finding]:
    """Symptoms are folded by code: they stand under the first root of their code."""
    first = next(one for one in report.findings if one.code == found.code)
    return (one for one in report.folded if one.because == (found.code,) and found is first)


def _title(found: Finding, report: Report, page: Page) -> Iterable[Text]:
    sign, style = page.glyphs.severity[found.severity], STYLES[found.severity]
    title = Text(f"{sign} {found.code} {page.clean(found.name)}", f"bold {style}")
    sure = "" if found.confidence == "measured" else f", {found.confidence}"
    judged = f"{found.severity.name}{sure}"
    fits = cell_len(title.plain + judged) + 3 <= page.width
    gap = f" {page.glyphs.between} " if fits else "\n  "
    yield from title.append(f"{gap}{judged}", f"not bold {style}").split("\n")
    if found.where:
        where = place(found, report.record, page.width - 5, page.glyphs)
        yield Text("  at ", "dim").append(where, "not dim bold")


def _symptom(found: Finding, page: Page) -> str:
    return f"{found.code} {page.clean(found.name)}: {page.clean(found.says)}"


def _labelled(label: str, lines: Sequence[str], page: Page) -> Iterable[Text]:
    """Put a label before lines, or above them where the page is narrow."""
    if lines and page.narrow:
        yield Text(f"  {label}", "dim")
        yield from _indented(lines, page.indent)
        return
    for number, line in enumerate(lines):
        yield Text(f"  {'' if number else label:<{LABEL}}", "dim").append(line, "not dim")


def _advice(label: str, advice: Advice, told: str, page: Page) -> Iterable[Text]:
    """Show a remedy, what its trial has shown, and its lines of code, ready to paste."""
    name = f"{advice.remedy} ({told})" if told else advice.remedy
    yield from _labelled(label, page.wrapped(page.clean(name), page.indent), page)
    for line in broken(advice.patch, page.width - 4):
        yield Text(f"    {page.clean(line)}", "cyan")


def _indented(lines: Iterable[str], indent: int, style: str = "") -> Iterable[Text]:
    return (Text(f"{' ' * indent}{line}", style) for line in lines)


def _notes(report: Report, page: Page) -> Iterable[Text]:
    for found in report.findings:
        if found.severity == Severity.note:
            sign = page.glyphs.severity[Severity.note]
            first, *rest = page.wrapped(_symptom(found, page), 2)
            yield Text(f"{sign} ", STYLES[Severity.note]).append(first, "default")
            yield from _indented(rest, 2)


# --- Trials ---------------------------------------------------------------------------------------


def _tried(report: Report, page: Page) -> Iterable[Text]:
    if report.cure is None or len(report.cure.trials) < 2:
        return
    yield from table(report.cure, page.width, page.glyphs)
    for words in besides(report.cure, page.glyphs):
        yield from _indented(page.wrapped(words, 2), 2, "dim")


def _prescribed(report: Report, page: Page) -> Iterable[Text]:
    """The lines to paste and their longer run, or that nothing helped."""
    cure = report.cure
    if cure is None:
        return
    chosen = cure.prescription
    if chosen is not None:
        do, proof = proof_of(chosen)
        yield Text(f"  {do}", "bold").append(f" ({proof})", "not bold dim")
        for line in broken(whole(chosen.patch), page.width - 4):
            yield Text(f"    {page.clean(line)}", "cyan")
    elif len(cure.trials) > 1:
        yield Text("  nothing helped on every seed", "bold")
    if cure.confirmation is not None:
        yield from _indented(page.wrapped(_confirmed(cure.confirmation), 2), 2)
    for words in cure.said:
        yield from _indented(page.wrapped(page.clean(words), 2), 2, "dim")


def _confirmed(longer: Confirmation) -> str:
    before, after = loss_of(longer.before), loss_of(longer.after)
    holds = "" if longer.holds else ": it does not hold for longer"
    return f"longer run ({longer.steps} steps, 1 seed): loss {before} -> {after}{holds}"


# --- Profile, blind spots, and cost ---------------------------------------------------------------


def _profile(report: Report, page: Page) -> Iterable[Text]:
    healthy = report.verdict == "healthy"
    most = 12 if healthy else 30
    named = marks(report.findings)
    return profile(report.record, named, page.width, page.glyphs, most=most)


def _unseen(report: Report, page: Page) -> Iterable[Text]:
    ranked = sorted(report.blind, key=attrgetter("why", "code"))
    for why, group in groupby(ranked, key=attrgetter("why")):
        same = list(group)
        names = ", ".join(f"{one.code} {one.name}" for one in same)
        if len(same) > MANY:
            names = f"{'all ' if same == ranked and not report.clear else ''}{len(same)} checks"
        first, *rest = page.wrapped(page.clean(f"not seen ({why}): {names}"), 2)
        yield Text(f"? {first}", "dim")
        yield from _indented(rest, 2, "dim")


def _cost(report: Report, page: Page) -> Iterable[Text]:
    said = [f"{_plural(len(report.clear), 'check')} clear"] if report.clear else []
    seconds = report.cost.get("seconds", math.nan)
    if report.cure is not None:
        steps = _plural(report.cure.spent, "step")
        said.append(f"{steps} of training in {seconds:.0f} s of trials")
    elif "overhead" in report.cost:
        said.append(_watched(report, seconds))
    elif math.isfinite(seconds):
        said.append(_looked(seconds, report.cost.get("relative_to_step", math.nan), page.glyphs))
    return _indented(page.wrapped("; ".join(said), 2), 2, "dim") if said else ()


def _watched(report: Report, seconds: float) -> str:
    count = int(report.cost.get("steps", len(report.record.steps)))
    steps, ended = _plural(count, "step"), str(report.record.facts.get("run", {}).get("ended", ""))
    last = f"; it ended with {ended}" if ended else ""
    if not count or not seconds > 0:
        return f"{steps}{last}"
    each, share = 1000 * seconds / count, report.cost["overhead"]
    own = f"{share:.1%} of that ({share * each:.2g} ms) is the watch"
    return f"{steps} in {seconds:.1f} s, {each:.2g} ms each; {own}{last}"


def _looked(seconds: float, ratio: float, glyphs: Glyphs) -> str:
    time = f"{seconds * 1000:.0f} ms" if seconds < 0.1 else f"{seconds:.1f} s"
    if not math.isfinite(ratio):
        return f"looked for {time}"
    return f"looked for {time}: {ratio:.1f} {glyphs.times} one forward and backward pass"
