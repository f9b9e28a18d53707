"""Draw a run as it stands: loss and gradient, the layers, and what happened last."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.cells import cell_len
from rich.text import Text

from steadygrad.core.finding import Severity
from steadygrad.core.steps import METRICS, Row
from steadygrad.core.stored import Stored
from steadygrad.render.layers import Layer, layers
from steadygrad.render.profile import STYLES, Axis
from steadygrad.render.spark import spark
from steadygrad.render.words import Glyphs, clean, cut, shortened

Event = Mapping[str, Any]  # JSON: see lines.Object
Line = list[tuple[str, str]]  # words and their style

QUIET = 10.0  # seconds without a row after which a run is called silent, chosen by us
LABEL = 10  # cells of the column of labels
GAP = 2  # cells between facts
NUMBER = 10  # cells of a column of numbers, with the gap before it
RECENT = 30.0  # seconds over which the speed is taken
MOST_EVENTS = 6
MOST_OPTIMIZERS = 3
SEVERITIES = {one.name: one for one in Severity}


@dataclass(frozen=True, slots=True)
class Screen:
    """What is drawn on."""

    width: int
    height: int
    glyphs: Glyphs


def live(run: Stored, width: int, height: int, glyphs: Glyphs, age: float = 0.0) -> Text:
    """Draw a run in at most `height` lines of `width` cells (40 or more, and 12 or more).

    `age` is the time since the run was last written, in seconds.
    """
    screen = Screen(max(width, 40), max(height, 12), glyphs)
    head = [*_title(run, age, screen), Text(), *_optimizers(run, screen)]
    events = _events(run.events, screen)
    room = screen.height - len(head) - len(events) - 2 * bool(events) - 3
    drawn = [*head, *_table(run, room, screen)]
    drawn += [Text(), *events] if events else []
    return Text("\n").join(drawn[: screen.height])


# --- Title ---------------------------------------------------------------------------------------


def _title(run: Stored, age: float, screen: Screen) -> Iterable[Text]:
    state, style = _state(run, age)
    progress = _progress(run.rows, screen.glyphs)
    name = clean(run.path.resolve().name, screen.glyphs)
    room = screen.width - cell_len(state) - 2
    wide = cell_len(name) + cell_len(progress) + 2 <= room
    shown = shortened(name, room, screen.glyphs)
    title = Text(f"{shown}  ", "bold").append(state, f"not bold {style}")
    if wide:
        gap = screen.width - cell_len(title.plain) - cell_len(progress)
        yield title.append(f"{' ' * gap}{progress}", "not bold")
        return
    yield title
    yield Text(cut(progress, screen.width, screen.glyphs))


def _state(run: Stored, age: float) -> tuple[str, str]:
    if any(event["kind"] == "end" for event in run.events):
        return "ended", "dim"
    seconds = [row.seconds for row in run.rows[-20:]]
    usual = (seconds[-1] - seconds[0]) / (len(seconds) - 1) if len(seconds) > 1 else 0.0
    if age > max(QUIET, 5 * usual):
        return f"silent for {_time(age)}", "yellow"
    return "running", "green"


def _progress(rows: Sequence[Row], glyphs: Glyphs) -> str:
    if not rows:
        return "no step yet"
    last = rows[-1]
    said = [f"step {last.step}"]
    recent = [row for row in rows if row.seconds >= last.seconds - RECENT]
    passed = last.seconds - recent[0].seconds
    if passed > 0:
        said.append(f"{number((last.step - recent[0].step) / passed)}/s")
    return f" {glyphs.between} ".join([*said, _time(last.seconds)])


def _time(seconds: float) -> str:
    """Say a time: 12 s, 3:05, 1:02:03."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(int(min(seconds, 1e9)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


# --- Optimizers ----------------------------------------------------------------------------------


def _optimizers(run: Stored, screen: Screen) -> Iterable[Text]:
    """Draw each optimizer; with several, each below its name."""
    rows = [row for row in run.rows if row.kind in ("step", "median")]
    most = max((len(row.read[name]) for row in rows for name in _of_step(row)), default=0)
    names = [site.name for site in run.sites if site.role == "step"]
    many = max(len(names), min(most, 99)) if rows else 0
    for place in range(min(many, MOST_OPTIMIZERS)):
        if many > 1:
            name = names[place] if place < len(names) else f"optimizer {place}"
            yield Text(cut(clean(name, screen.glyphs), screen.width, screen.glyphs), "bold")
        yield from _optimizer(rows, place, screen)
    if many > MOST_OPTIMIZERS:
        yield Text(f"and {many - MOST_OPTIMIZERS} optimizers more", "dim")


def _of_step(row: Row) -> Iterable[str]:
    return (name for name in row.read if METRICS.get(name) == "step")


def _optimizer(rows: Sequence[Row], place: int, screen: Screen) -> Iterable[Text]:
    loss = _series(rows, "loss", place)
    yield from _loss(loss[~np.isnan(loss)], screen)
    yield from _labelled("gradient", _gradient(rows, place), screen)
    yield from _labelled("lr", _settings(rows, place), screen)


def _series(rows: Sequence[Row], metric: str, place: int) -> NDArray[np.float64]:
    """Return one number for each row: NaN where it was not read."""
    read = (row.read.get(metric, ()) for row in rows)
    return np.array([one[place] if place < len(one) else np.nan for one in read], np.float64)


def _loss(loss: NDArray[np.float64], screen: Screen) -> Iterable[Text]:
    if not len(loss):
        return
    finite = loss[np.isfinite(loss)]
    least = float(finite.min()) if len(finite) else math.inf
    facts = [_fact("now", loss[-1], "bold"), _fact("first", loss[0]), _fact("min", least)]
    beside = screen.width - LABEL - sum(map(_cells, facts)) - GAP * len(facts)
    cells = beside if beside >= 12 else screen.width - LABEL
    bars = (spark(loss, min(cells, 60), screen.glyphs), "cyan")
    yield from _labelled("loss", [[bars], *facts], screen)


def _gradient(rows: Sequence[Row], place: int) -> list[Line]:
    norm, after = (_series(rows, metric, place) for metric in ("norm", "norm_after"))
    both = ~(np.isnan(norm) | np.isnan(after))
    said = [] if np.isnan(norm).all() else [_fact("norm", _latest(norm))]
    if both.any():
        clipped = float(np.mean(after[both] < 0.999 * norm[both]))
        said.append(_fact("after clipping", _latest(after)))
        said.append([("clipped ", "dim"), (f"{clipped:.0%}", ""), (" of steps", "dim")])
    return said


def _settings(rows: Sequence[Row], place: int) -> list[Line]:
    lr, scale = (_latest(_series(rows, name, place)) for name in ("lr", "scale"))
    skipped = _series([row for row in rows if row.kind == "step"], "skipped", place)
    said: list[Line] = [] if math.isnan(lr) else [[(number(lr), "")]]
    if not math.isnan(scale) and scale != 1:
        said.append(_fact("scale", scale))
    if not np.isnan(skipped).all():
        count = int(np.count_nonzero(skipped > 0))
        of = f" of {np.count_nonzero(~np.isnan(skipped))}" if count else ""
        said.append([("skipped ", "dim"), (f"{count}", "yellow" if count else ""), (of, "dim")])
    return said


def _fact(label: str, value: float, style: str = "") -> Line:
    return [(f"{label} ", "dim"), (number(value), style)]


def _cells(words: Line) -> int:
    return sum(cell_len(one) for one, _ in words)


def _latest(series: NDArray[np.float64]) -> float:
    read = series[~np.isnan(series)]
    return float(read[-1]) if len(read) else math.nan


def _labelled(label: str, said: Sequence[Line], screen: Screen) -> Iterable[Text]:
    """Put a label before words; what does not fit beside the others stands below."""
    if not said:
        return
    line = Text(f"{label:<{LABEL}}", "dim")
    for place, words in enumerate(said):
        if place and cell_len(line.plain) + GAP + _cells(words) > screen.width:
            yield line
            line = Text(" " * LABEL)
        elif place:
            line.append(" " * GAP)
        for one, style in words:
            line.append(one, "dim" if style == "dim" else f"not dim {style}")
    yield line


def number(value: float) -> str:
    """Say a number in three digits, in at most eight cells."""
    if math.isnan(value):
        return ""
    if math.isinf(value):
        return "broken"
    size = abs(value)
    if size and not 1e-3 <= size < 1e5:
        digits, _, power = f"{value:.1e}".partition("e")
        return f"{digits.removesuffix('.0')}e{int(power)}"
    return f"{value:.0f}" if size >= 100 else f"{value:.3g}"


# --- Layers --------------------------------------------------------------------------------------


def _table(run: Stored, room: int, screen: Screen) -> Iterable[Text]:
    found = layers(run.sites, run.rows, _marks(run.events), max(room, 3))
    if not found or all(math.isnan(one.gradient) for one in found):
        return
    columns = _columns(found, screen)
    name = _name_cells(found, screen)
    cells = screen.width - 2 - name - 1 - NUMBER * len(columns)
    axis = Axis(*_span(found), max(cells, 8))
    yield Text()
    titles = "".join(f"{title:>{NUMBER}}" for title, _ in columns)
    yield Text(f"  {'layer':<{name}} {'gradient norm':<{axis.cells}}{titles}", "bold")
    yield Text(f"  {' ' * name} {axis.labels()}".rstrip(), "dim")
    for one in found:
        yield _row(one, name, axis, [values[one] for _, values in columns], screen)


def _columns(found: Sequence[Layer], screen: Screen) -> list[tuple[str, dict[Layer, str]]]:
    """Return the columns that were read, as many as fit: those that matter least go first."""
    columns = [
        ("update/w", {one: number(one.ratio) for one in found}),
        ("weight", {one: number(one.weight) for one in found}),
        ("dead", {one: "" if math.isnan(one.dead) else f"{one.dead:.0%}" for one in found}),
    ]
    most = 1 if screen.width < 56 else 2 if screen.width < 72 else 3
    return [column for column in columns if any(column[1].values())][:most]


def _name_cells(found: Sequence[Layer], screen: Screen) -> int:
    longest = max(cell_len(_named(one, screen.glyphs)) for one in found)
    return min(max(longest, 5), max(12, screen.width // 4), 40)


def _named(one: Layer, glyphs: Glyphs) -> str:
    start, end = (clean(name, glyphs) for name in (one.name or "(model)", one.until))
    if not end:
        return start
    family, _, own = end.rpartition(".")
    return f"{start} {glyphs.dots} {own if start.rpartition('.')[0] == family else end}"


def _span(found: Sequence[Layer]) -> tuple[int, int]:
    """Whole decades that hold every gradient; at least two."""
    sizes = [math.log10(one.gradient) for one in found if 0 < one.gradient < math.inf]
    low, high = math.floor(min(sizes, default=-1.0)), math.ceil(max(sizes, default=0.0))
    return low, max(high, low + 2)


def _row(one: Layer, name: int, axis: Axis, values: Sequence[str], screen: Screen) -> Text:
    style = "" if one.mark is None else STYLES[one.mark]
    sign = " " if one.mark is None else screen.glyphs.severity[one.mark]
    shown = shortened(_named(one, screen.glyphs), name, screen.glyphs)
    line = Text(f"{sign} ", style).append(f"{shown}{' ' * (name - cell_len(shown))} ")
    line.append_text(_bar(one.gradient, axis, style, screen.glyphs))
    line.append("".join(f"{value:>{NUMBER}}" for value in values))
    line.rstrip()
    return line


def _bar(gradient: float, axis: Axis, style: str, glyphs: Glyphs) -> Text:
    """Draw a norm from the left edge of the log axis, or say that there is none."""
    if not 0 < gradient < math.inf:
        word = "not read" if math.isnan(gradient) else "broken" if gradient else "zero"
        return Text(f"{word:<{axis.cells}}", style or "dim")
    head = axis.cell(math.log10(gradient))
    bar = Text(glyphs.stem * head, "dim").append(glyphs.head, f"not dim {style or 'cyan'}")
    return bar.append(" " * (axis.cells - head - 1))


# --- Events --------------------------------------------------------------------------------------


def _marks(events: Sequence[Event]) -> dict[str, Severity]:
    """Names in findings above a note, each with the worst that was found there."""
    marks: dict[str, Severity] = {}
    for event in events:
        severity = _severity(event)
        where = event.get("where")
        if severity and isinstance(where, list | tuple):
            for name in where:
                if isinstance(name, str):
                    marks[name] = max(marks.get(name, severity), severity)
    return marks


def _severity(event: Event) -> Severity | None:
    named = event.get("severity")
    return SEVERITIES.get(named) if isinstance(named, str) else None


def _events(events: Sequence[Event], screen: Screen) -> list[Text]:
    """Say the latest events, newest last; alike ones in a row are said once."""
    most = min(MOST_EVENTS, max(screen.height // 5, 2))
    said: list[tuple[Event, str, int]] = []
    for event in events:
        words = _words(event)
        many = said.pop()[2] if said and said[-1][1] == words else 0
        said.append((event, words, many + 1))
    steps = [f"{event['step']}" for event, _, _ in said[-most:]]
    cells = max(map(len, steps), default=0)
    return [
        _event(event, words, many, min(cells, 12), screen) for event, words, many in said[-most:]
    ]


def _event(event: Event, words: str, many: int, cells: int, screen: Screen) -> Text:
    severity = _severity(event)
    sign = screen.glyphs.severity[severity or Severity.note]
    style = STYLES[severity] if severity else "dim"
    times = f" {screen.glyphs.times}{many}" if many > 1 else ""
    room = screen.width - cells - 4 - cell_len(times)
    line = Text(f"{sign} ", style).append(f"{event['step']!s:>{cells}}  ", "dim")
    return line.append(cut(clean(words, screen.glyphs), room, screen.glyphs) + times, "default")


def _words(event: Event) -> str:
    """Say an event: a finding by its code, name, and sentence, another by its kind and numbers."""
    says = event.get("says")
    titled = [str(event[key]) for key in ("code", "name") if isinstance(event.get(key), str)]
    title = " ".join(titled) or str(event["kind"])
    if isinstance(says, str):
        return f"{title}: {says}"
    hidden = ("step", "kind", "code", "name", "severity", "t")
    rest = (
        f"{key} {number(value) if isinstance(value, float) else value}"
        for key, value in event.items()
        if key not in hidden
    )
    return " ".join(chain([title], rest))
