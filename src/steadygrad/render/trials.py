"""The table of a cure: what was tried, what it came to, and the lines to paste."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean

from rich.cells import cell_len
from rich.text import Text

from steadygrad.core.finding import Advice, remedies_of
from steadygrad.core.trial import Cure, Trial
from steadygrad.render.words import Glyphs, clean, cut

LOSS = 8  # cells of a loss
EFFECT = 22  # cells of a difference and its interval
ROWS = 6  # of trials that went on, and as many of blind draws
STYLES = {"helps": "bold green", "worse": "yellow", "crashed": "red"}


def table(cure: Cure, width: int, glyphs: Glyphs) -> Iterable[Text]:
    """One line for each trial that went on to all steps, the others in a sentence."""
    rows = [one for one in cure.trials if one.verdict != "unfit"]
    if not rows:
        return
    steps, seeds = rows[0].steps, len(rows[0].seeds)
    went_on = [one for one in rows if one.steps == steps]
    mine = [one for one in went_on if not one.random][: ROWS + 1]
    drawn = [one for one in went_on if one.random]
    best = min(drawn, key=lambda one: (-len(one.after), fmean(one.after)), default=None)
    shown = [*mine, *([best] if best is not None else [])]
    title = f"loss after {steps} steps"
    losses = max(seeds * LOSS, len(title)) + 2
    names = _names(shown, width, losses)
    head = f"  {'remedy':<{names}}{title:<{losses}}"
    wide = _wide(width, names, losses)
    yield Text(f"{head}{'against no change':<{EFFECT}}verdict" if wide else head, "dim")
    for one in shown:
        first, *more = _lines(name_of(one), names - 2, glyphs)
        yield _row(one, first, names, losses, width)
        yield from (Text(f"  {line}") for line in more)


def _names(rows: Sequence[Trial], width: int, losses: int) -> int:
    """Cells of the column of names, beside so many of losses."""
    longest = max(cell_len(name_of(one)) for one in rows) + 2
    room = width - 2 - losses - EFFECT - 9
    return max(14, min(longest, max(room, 14)))


def _wide(width: int, names: int, losses: int) -> bool:
    return width >= 2 + names + losses + EFFECT + 9


def name_of(one: Trial) -> str:
    """What a table calls it."""
    return f"random: {one.name}" if one.random else one.name


def _lines(name: str, cells: int, glyphs: Glyphs) -> list[str]:
    """A name in lines of so many cells, broken before what is joined to it."""
    whole = clean(name, glyphs)
    if cell_len(whole) <= cells:
        return [whole]
    first, *more = whole.split(" + ")
    return [cut(part, cells, glyphs) for part in (first, *(f"  + {one}" for one in more))]


def _row(one: Trial, name: str, names: int, losses: int, width: int) -> Text:
    ends = "".join(f"{loss_of(loss):<{LOSS}}" for loss in one.after)
    line = Text(f"  {name:<{names}}{ends:<{losses}}")
    if not one.remedies:
        return line
    if not _wide(width, names, losses):
        return line.append(one.verdict, STYLES.get(one.verdict, ""))
    line.append(f"{effect_of(one):<{EFFECT}}")
    return line.append(verdict_of(one), STYLES.get(one.verdict, ""))


def verdict_of(one: Trial) -> str:
    """The verdict in words."""
    return "1 seed" if one.verdict == "unsure" else one.verdict


def proof_of(chosen: Trial) -> tuple[str, str]:
    """What is to be done with the lines of a change, and how it is known that they help."""
    if chosen.imitates:
        return "change this", "proven on all seeds by a trial that does the same"
    return "paste this once model and optimizer exist", "proven on all seeds"


def tried(advice: Advice, cure: Cure | None) -> str:
    """What trials have shown of an advice, under the name of the remedy that does it; or ''."""
    if cure is None:
        return ""
    names = remedies_of(advice)
    chosen = () if cure.prescription is None else cure.prescription.remedies
    if any(name in chosen for name in names):
        return f"prescribed: {cure.chosen}"
    alone = [one for one in cure.trials if one.remedies and {*one.remedies} <= {*names}]
    fitting = [one for one in alone if one.verdict != "unfit"]
    return f"tried: {verdict_of(fitting[0])}" if fitting else ""


def effect_of(one: Trial) -> str:
    """The mean difference and its interval."""
    low, high = one.interval
    if one.own:
        return f"from {fmean(one.before):.3g}, its own"
    if math.isinf(one.effect):
        return "no longer breaks" if one.effect < 0 else "breaks"
    if all(map(math.isinf, one.after)):
        return "breaks as well"
    mean = f"{'+' if one.effect >= 0 else ''}{_short(one.effect)}"
    if not math.isfinite(low):
        return mean
    if one.verdict == "helps" and high >= 0:
        return f"{mean}, all lower"
    return f"{mean} [{_short(low)}, {_short(high)}]"


def _short(change: float) -> str:
    """A difference in few cells."""
    if change == 0 or 0.05 <= abs(change) < 1000:
        return f"{change:.2f}"
    return f"{change:.1g}"


def loss_of(loss: float) -> str:
    """A loss in few cells."""
    if not math.isfinite(loss):
        return "broken"
    if loss == 0:
        return "0"  # also of -0.0
    if 0.001 <= abs(loss) < 1000:
        return f"{loss:.3f}"
    return f"{loss:.1e}" if loss >= 0 else f"{loss:.0e}"


def besides(cure: Cure, glyphs: Glyphs) -> list[str]:
    """Sentences on what the table leaves out."""
    rows = [one for one in cure.trials if one.verdict != "unfit"]
    steps = rows[0].steps if rows else 0
    short = [one for one in rows if one.steps < steps and not one.random]
    draws = [one for one in rows if one.random]
    said = []
    if short:
        names = ", ".join(one.name for one in short)
        said.append(f"{short[0].steps} steps sufficed to drop {names}.")
    crashed = [one for one in rows if one.verdict == "crashed"]
    said += [f"{one.name}: {_last_words(one.why)}" for one in crashed[:3]]
    if draws:
        said.append(f"Random search drew {len(draws)} changes for as many steps.")
    return [clean(words, glyphs) for words in said]


def _last_words(traceback: str) -> str:
    """The line of a traceback that names the exception."""
    lines = traceback.strip().splitlines()
    return next((one for one in reversed(lines) if not one[:1].isspace()), lines[-1]).rstrip(": .")
