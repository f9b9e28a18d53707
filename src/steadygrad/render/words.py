"""Words and signs of a report on a terminal: names made harmless, shortened, and listed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

from rich.cells import cell_len

from steadygrad.core.finding import Finding, Severity
from steadygrad.core.record import Record


@dataclass(frozen=True, slots=True)
class Glyphs:
    """The signs of a drawing; each is one cell wide, but for `dots` in ASCII."""

    ascii: bool
    dots: str
    between: str
    times: str
    stem: str
    head: str
    level: str
    healthy: str
    severity: tuple[str, str, str]
    """Signs for note, risk, and broken."""


UNICODE = Glyphs(False, "…", "·", "\N{MULTIPLICATION SIGN}", "─", "●", "┊", "✓", ("·", "!", "✗"))
ASCII = Glyphs(True, "..", "|", "x", "-", "o", "|", "+", ("-", "!", "x"))


def glyphs_for(encoding: str | None) -> Glyphs:
    """Choose the signs that a stream of this encoding can write."""
    signs = "".join((UNICODE.dots, UNICODE.stem, UNICODE.head, UNICODE.level, UNICODE.healthy, "✗"))
    try:
        signs.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return UNICODE


def clean(text: str, glyphs: Glyphs) -> str:
    """Make text harmless: what is not printable, or not ASCII where it must be, is escaped.

    Names come from the user's program and may hold control characters, escape sequences, or signs
    that turn the direction of writing.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(one if _harmless(one, glyphs) else _escaped(one) for one in text)


def _harmless(one: str, glyphs: Glyphs) -> bool:
    return one.isprintable() and (one.isascii() or not glyphs.ascii)


def _escaped(one: str) -> str:
    return one.encode("unicode_escape").decode("ascii")


# --- Shortened names -----------------------------------------------------------------------------


def shortened(name: str, cells: int, glyphs: Glyphs) -> str:
    """Shorten a qualified name in its middle: `encoder.block.0.layers.3` to `encoder…layers.3`.

    Whole parts are kept while the last fits, the first before those between; then letters.
    """
    if cell_len(name) <= cells:
        return name
    parts = name.split(".")
    for first in (parts[0], ""):
        for start in range(1 + bool(first), len(parts)):
            candidate = f"{first}{glyphs.dots}{'.'.join(parts[start:])}"
            if cell_len(candidate) <= cells:
                return candidate
    room = max(cells - len(glyphs.dots), 0)
    end = prefix(name[::-1], room - room // 3)[::-1]
    return prefix(prefix(name, room // 3) + glyphs.dots + end, cells)


def cut(text: str, cells: int, glyphs: Glyphs) -> str:
    """Cut a sentence at its end."""
    if cell_len(text) <= cells:
        return text
    return prefix(text, max(cells - len(glyphs.dots), 0)).rstrip() + glyphs.dots


def prefix(text: str, cells: int) -> str:
    """Return the longest start of a text that fits."""
    while cell_len(text) > cells:
        text = text[: min(len(text) - 1, cells)]
    return text


# --- Where ---------------------------------------------------------------------------------------


def place(finding: Finding, record: Record, cells: int, glyphs: Glyphs) -> str:
    """Say where: up to three names, a stretch of the trunk by its ends, or names and a count."""
    where = [clean(name, glyphs) or "the model" for name in finding.where]
    if len(where) <= 3:
        return listed(where, cells, glyphs)
    order = _stretch(finding.where, record)
    if order is None:
        return f"{listed(where[:2], cells - 14, glyphs)} and {len(where) - 2} more"
    ends = [clean(one, glyphs) or "the model" for one in (order[0], order[-1])]
    many = f" ({len(where)} layers)"
    room = (cells - len(many) - len(glyphs.dots) - 2) // 2
    first, last = (shortened(end, room, glyphs) for end in ends)
    return f"{first} {glyphs.dots} {last}{many}"


def listed(names: Sequence[str], cells: int, glyphs: Glyphs) -> str:
    """List names on one line, each shortened to its share of it."""
    whole = ", ".join(names)
    if cell_len(whole) <= cells:
        return whole
    room = (cells - 2 * (len(names) - 1)) // len(names)
    return ", ".join(shortened(name, room, glyphs) for name in names)


def _stretch(where: Sequence[str], record: Record) -> list[str] | None:
    """Names in forward order, when they are neighbouring units of the trunk."""
    trunk = list(dict.fromkeys(site.name for site in record.sites_of("unit")))
    index = {name: number for number, name in enumerate(trunk)}
    if not set(where) <= index.keys():
        return None
    numbers = sorted(index[name] for name in where)
    together = numbers[-1] - numbers[0] == len(numbers) - 1
    return [trunk[number] for number in numbers] if together else None


def marks(findings: Sequence[Finding]) -> dict[str, Severity]:
    """Names in findings above a note, each with the severity of the worst that names it."""
    alarms = [(name, one.severity) for one in findings if one.severity for name in one.where]
    return dict(sorted(alarms, key=itemgetter(1)))


# --- Evidence ------------------------------------------------------------------------------------

LABELS: Mapping[str, str] = {
    "total_decades": "in total {:+.1f} decades",
    "factor_per_unit": "{times}{:.3g} per unit",
    "depth_scale": "a factor e every {:.2g} units",
    "units": "{:.0f} units",
    "gsc": "gradient scale coefficient {:+.1f} decades",
    "nlc": "nonlinearity coefficient {:+.1f} decades",
    "cosine": "cosine between samples {:.3f}",
    "kind": "kind: {}",
    "multiplier": "multiply the weights by {:.4g}",
    "weight_scale": "mean(W^2) * fan_in = {:.3g}",
    "needed": "needed {:.3g}",
    "deviation_decades": "{:+.1f} decades from its siblings",
    "impact_decades": "{:+.1f} decades on the trunk's gradient",
    "bias_to_signal_decades": "bias to signal {:+.1f} decades",
    "zeros": "{:.1%} zeros",
    "dead_layers": "{:.0f} dead layers",
    "slope": "E f'^2 = {:.2g}",
    "slope_nominal": "under N(0, 1) {:.2g}",
    "passes_decades": "passes {:+.1f} decades",
    "eta": "eta = {:.2f}",
    "unit_decades": "this unit {:+.1f} decades",
    "trend_decades": "the others {:+.2f}",
    "output_decades": "output RMS 1e{:.1f}",
    "collapse_decades": "samples alike by {:+.1f} decades",
    "time_decades": "over time {:+.1f} decades",
    "time_factor": "{times}{:.3g} per time step",
    "time_horizon": "a factor e every {:.3g} time steps",
    "time_steps": "{:.0f} time steps",
}
"""How a quantity of the evidence reads; others are shown by their own name."""


def evidence(finding: Finding, glyphs: Glyphs) -> list[str]:
    """Say each number of the evidence with its unit."""
    return [quantity(key, value, glyphs) for key, value in finding.evidence.items()]


def quantity(key: str, value: float | str, glyphs: Glyphs) -> str:
    """Say one number: by its label, or by its own name."""
    if isinstance(value, str):
        shown = clean(value, glyphs)
        return LABELS.get(key, f"{_spoken(key, glyphs)}: {{}}").format(shown, times=glyphs.times)
    if not math.isfinite(value):
        return f"{_spoken(key.removesuffix('_decades'), glyphs)} {unreadable(value)}"
    if key in LABELS:
        return LABELS[key].format(value, times=glyphs.times)
    if key.endswith("_decades"):
        return f"{_spoken(key.removesuffix('_decades'), glyphs)} {value:+.1f} decades"
    amount = f"{value:.0f}" if value == round(value) and abs(value) < 1e9 else f"{value:.4g}"
    return f"{_spoken(key, glyphs)} {amount}"


def unreadable(value: float) -> str:
    """Say a number that is none: NaN was not read."""
    return "not read" if math.isnan(value) else "infinite" if value > 0 else "minus infinite"


def _spoken(key: str, glyphs: Glyphs) -> str:
    return clean(key, glyphs).replace("_", " ")
