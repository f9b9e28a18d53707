"""Draw the depth profile: the size of signal and gradient, unit by unit, on a log axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from rich.cells import cell_len
from rich.text import Text

from steadygrad.core.finding import Severity
from steadygrad.core.record import Record, Site
from steadygrad.render.words import Glyphs, clean, shortened

STYLES = {Severity.note: "cyan", Severity.risk: "yellow", Severity.broken: "red"}
FACTOR = 10  # cells of the last column, with the gap before it
WIDE = 64  # cells from which the last column is shown


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the profile: a unit, or neighbours `until` another and their mean, in decades."""

    name: str
    until: str
    mark: Severity | None
    signal: float
    gradient: float
    gain: float


@dataclass(frozen=True, slots=True)
class Axis:
    """A log axis from `low` to `high` decades over so many cells."""

    low: int
    high: int
    cells: int

    def cell(self, decades: float) -> int:
        """Return the cell of a value."""
        share = (decades - self.low) / (self.high - self.low)
        return round(share * (self.cells - 1))

    def ticks(self) -> list[int]:
        """Return the decades to label: multiples of the smallest step whose labels keep apart."""
        for step in (size * 10**power for power in range(9) for size in (1, 2, 3, 5)):
            marks = range(math.ceil(self.low / step) * step, self.high + 1, step)
            longest = max(len(label(mark)) for mark in marks)
            if self.cell(self.low + step) >= longest + 3:
                return list(marks)
        return [0]

    def labels(self) -> str:
        """Return the line of labels, each centred on its cell; 1 is always there."""
        line = [" "] * self.cells
        for tick in sorted(self.ticks(), key=abs):
            text = label(tick)
            at = min(max(self.cell(tick) - len(text) // 2, 0), self.cells - len(text))
            if not "".join(line[max(at - 1, 0) : at + len(text) + 1]).strip():
                line[at : at + len(text)] = text
        return "".join(line)


def label(decades: int) -> str:
    """Return a power of ten: 1e-6, or 1."""
    return f"1e{decades}" if decades else "1"


def profile(
    record: Record,
    marks: Mapping[str, Severity],
    width: int,
    glyphs: Glyphs,
    *,
    most: int = 30,
) -> list[Text]:
    """Draw the units in forward order: root mean square of the output, and gradient there.

    The gradient is relative to the one at the network's output. Both columns share one axis, and a
    line stands at 1, where a network without loss or growth stays. More than `most` units are
    drawn as means of neighbours. `marks` are names of layers with the severity of what was found.
    """
    rows = rows_of(record, marks, most, glyphs)
    if not rows:
        return []
    wide = width >= WIDE
    name = min(max(cell_len(row.name + row.until) for row in rows), max(12, width // 4), 40)
    cells = (width - 2 - name - 4 - FACTOR * wide) // 2
    axis = Axis(*_span(rows), min(cells, 60))
    drawn = [_line(row, name, axis, wide, glyphs) for row in rows]
    return [*_head(name, axis, wide), *drawn, *_legend(rows, width, glyphs)]


# --- Rows ----------------------------------------------------------------------------------------


def rows_of(record: Record, marks: Mapping[str, Severity], most: int, glyphs: Glyphs) -> list[Row]:
    """Read the units of the trunk as at most `most` rows."""
    sites = record.sites_of("unit")
    columns = [record.read(metric, "unit") for metric in ("log_rms", "cumulative", "gain")]
    marked = [mark_of(site.name, marks) for site in sites]
    return [
        Row(
            *_name(sites[group[0]], sites[group[-1]], glyphs),
            max((one for one in marked[group[0] : group[-1] + 1] if one), default=None),
            *(mean(column[group]) for column in columns),
        )
        for group in grouped([one is not None for one in marked], most)
    ]


def mark_of(unit: str, marks: Mapping[str, Severity]) -> Severity | None:
    """Return the worst severity of what was found at a unit or inside of it."""
    inside = (severity for name, severity in marks.items() if _within(name, unit))
    return marks.get(unit) or max(inside, default=None)


def _within(name: str, unit: str) -> bool:
    return bool(unit) and name.startswith(f"{unit}.")


def grouped(marked: Sequence[bool], most: int) -> list[list[int]]:
    """Split places into at most `most` groups of neighbours, marked ones apart from others.

    Where marks alternate too often for that, they are not kept apart.
    """
    runs = [[place for place, _ in run] for _, run in groupby(enumerate(marked), lambda it: it[1])]
    if len(runs) > most // 2:
        runs = [list(range(len(marked)))]
    size = 1
    while sum(math.ceil(len(run) / size) for run in runs) > most:
        size += 1
    return [run[start : start + size] for run in runs for start in range(0, len(run), size)]


def mean(decades: NDArray[np.float64]) -> float:
    """Return the mean of what was read; inf where anything is broken, -inf where anything is 0."""
    read = decades[~np.isnan(decades)]
    if not len(read):
        return math.nan
    broken, zero = np.isposinf(read).any(), np.isneginf(read).any()
    return math.inf if broken else -math.inf if zero else float(read.mean())


def _name(first: Site, last: Site, glyphs: Glyphs) -> tuple[str, str]:
    """Name a unit, or neighbouring units by their ends: `layers.1` and ` … 4`."""
    start, end = (clean(one.name or f"({one.kind or 'model'})", glyphs) for one in (first, last))
    if first is last:
        return start, ""
    family, _, own = end.rpartition(".")
    return start, f" {glyphs.dots} {own if start.rpartition('.')[0] == family else end}"


# --- Drawing -------------------------------------------------------------------------------------


def _span(rows: Sequence[Row]) -> tuple[int, int]:
    """Whole decades that hold every value and 1; at least four, so that what is level looks so."""
    sizes = [size for row in rows for size in (row.signal, row.gradient) if math.isfinite(size)]
    low, high = min(sizes, default=0.0), max(sizes, default=0.0)
    return min(math.floor(low), -3), max(math.ceil(high), 1)


def _head(name: int, axis: Axis, wide: bool) -> list[Text]:
    gradient = "gradient, 1 at the output" if axis.cells >= 25 else "gradient"
    signal = "signal RMS" if axis.cells >= 10 else "signal"
    blank = " " * (name + 3)
    titles = f"{blank}{signal:<{axis.cells}}  {gradient:<{axis.cells}}"
    titles += f"{'per unit':>{FACTOR - 1}}" if wide else ""
    labels = axis.labels()
    return [Text(titles.rstrip(), "bold"), Text(f"{blank}{labels}  {labels}".rstrip(), "dim")]


def _line(row: Row, name: int, axis: Axis, wide: bool, glyphs: Glyphs) -> Text:
    style = "" if row.mark is None else STYLES[row.mark]
    sign = " " if row.mark is None else glyphs.severity[row.mark]
    shown = _fitted(row, name, glyphs)
    line = Text(f"{sign} {shown}{' ' * (name - cell_len(shown))} ", style)
    line.append_text(_plot(row.signal, axis, style, glyphs)).append("  ")
    line.append_text(_plot(row.gradient, axis, style, glyphs))
    if wide:
        line.append(f"{factor(row.gain, glyphs):>{FACTOR - 1}}", style or "dim")
    line.rstrip()
    return line


def _fitted(row: Row, cells: int, glyphs: Glyphs) -> str:
    """Name a row in so many cells."""
    if cell_len(row.name + row.until) <= cells:
        return row.name + row.until
    until = shortened(row.until, cells // 2, glyphs)
    return shortened(row.name, cells - cell_len(until), glyphs) + until


def _plot(decades: float, axis: Axis, style: str, glyphs: Glyphs) -> Text:
    """Draw one value: a head, joined to the line at 1 by a stem; or a word where there is none."""
    level = axis.cell(0)
    cells = [" "] * axis.cells
    if not math.isfinite(decades):
        word = "not read" if math.isnan(decades) else "broken" if decades > 0 else "zero"
        cells[level] = glyphs.level
        cells[: len(word)] = word
        return Text("".join(cells), style or "dim")
    head = axis.cell(decades)
    low, high = min(head, level), max(head, level)
    cells[low : high + 1] = glyphs.stem * (high - low + 1)
    cells[level] = glyphs.level
    cells[head] = glyphs.head
    drawn = Text("".join(cells), "dim")
    drawn.stylize(f"not dim {style}", head, head + 1)
    return drawn


def factor(gain: float, glyphs: Glyphs) -> str:
    """Say by what a unit multiplies the gradient on its way to the input."""
    if math.isnan(gain):
        return ""
    if math.isinf(gain):
        return "broken" if gain > 0 else f"{glyphs.times}0"
    if abs(gain) >= 3:
        return f"{glyphs.times}1e{gain:.1f}"
    size = 10.0**gain
    return f"{glyphs.times}{size:.2f}" if 0.1 <= size < 10 else f"{glyphs.times}{size:.2g}"


def _legend(rows: Sequence[Row], width: int, glyphs: Glyphs) -> list[Text]:
    level = f"{glyphs.level} 1, the healthy level"
    worst_first = sorted({row.mark for row in rows if row.mark is not None}, reverse=True)
    if not worst_first:
        return [Text(f"  {level}", "dim")]
    named = f"{' '.join(glyphs.severity[one] for one in worst_first)} named above"
    one = f"  {level}   {named}"
    lines = [one] if cell_len(one) <= width else [f"  {level}", f"  {named}"]
    return [Text(line, "dim") for line in lines]
