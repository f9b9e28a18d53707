"""Say in text of 80 columns what came out: a table a setting, and what is open."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from statistics import median

from steadygrad.lab.arena.board import Board
from steadygrad.lab.arena.grid import Cell, Contestant, Setting
from steadygrad.lab.arena.ranking import Place, open_problems, places, unknown
from steadygrad.lab.running import columns

WIDTH = 80
KINDS = ("architecture", "activation", "norm", "init", "optimizer")
SHOWN = 8  # contestants that are shown at most where the ranking is not theirs


def ranking(board: Board) -> str:
    """Write the ranking of each setting, of all together, and what is open."""
    settings = sorted(board.by_setting)
    parts = [_setting(board, one) for one in settings]
    if len(settings) > 1:
        parts.append(_overall(board, settings))
    return "\n\n".join([_head(board), *parts, _open(board, settings), _legend(board)]) + "\n"


def _head(board: Board) -> str:
    constant = {kind: sole for kind in KINDS if (sole := _sole(board, kind))}
    first = f"{board.task}: {len(board.cells)} cells"
    with_all = ", ".join(f"{kind} {name}" for kind, name in constant.items())
    return _wrapped(f"{first}; in all of them {with_all}." if with_all else f"{first}.")


def _varying(board: Board) -> list[str]:
    return [kind for kind in KINDS if not _sole(board, kind)] or ["init"]


def _sole(board: Board, kind: str) -> str:
    names = {getattr(cell.contestant, kind) for cell in board.cells}
    return str(names.pop()) if len(names) == 1 else ""


def named(setting: Setting) -> str:
    """Name a setting."""
    said = [f"depth {setting.depth}"] if setting.depth else []
    said += [f"width {setting.width}"] if setting.width else []
    said += [f"gain {setting.gain:g}"] if setting.gain != 1 else []
    return ", ".join(said) or "as it is"


# --- A setting ------------------------------------------------------------------------------------


def _setting(board: Board, setting: Setting) -> str:
    kinds = _varying(board)
    ranked = places(board, setting)
    title = _title(board, setting, ranked)
    header = ("", *kinds, "lr", "loss", _unit(ranked))
    rows = [
        (one.group, *_names(one.cell, kinds), *_numbers(one, one is ranked[0])) for one in ranked
    ]
    table = [_fitted(header, rows)] if rows else []
    return "\n".join([title, *table, *_others(board, setting, [one.cell for one in ranked])])


def _title(board: Board, setting: Setting, ranked: Sequence[Place]) -> str:
    count = len(board.by_setting[setting])
    final = f"{len(ranked)} of {count} in the final" if ranked else f"no final yet of {count}"
    return f"{named(setting)}: {final}"


def _unit(ranked: Sequence[Place]) -> str:
    some = [loss for one in ranked for loss in one.losses if math.isfinite(loss)]
    return "times the best" if all(one > 0 for one in some) else "above the best"


def _numbers(place: Place, first: bool) -> tuple[str, str, str]:
    lr = f"{place.lr:.2g}{'*' if place.at_edge else ''}"
    if place.broken:
        whole = len(place.losses)
        return lr, "", f"diverged on {place.broken} of {whole} seeds"
    loss = f"{median(place.losses):.3g}"
    if first:
        return lr, loss, "best"
    if not math.isfinite(place.low):
        return lr, loss, f"{place.times:.3g}"
    return lr, loss, f"{place.times:.3g} ({place.low:.3g} .. {place.high:.3g})"


def _others(board: Board, setting: Setting, finalists: Sequence[Cell]) -> Iterator[str]:
    """Say in a sentence each what left early, and what could not be played."""
    mine = [cell for cell in board.by_setting[setting] if cell not in finalists]
    for number in reversed(range(board.schedule.rounds)):
        left = [cell for cell in mine if board.reached(cell) == number and not board.why(cell)]
        left.sort(key=board.loss)
        if left:
            names = [f"{_short(board, one)} {_loss(board.loss(one))}" for one in left[:SHOWN]]
            said = ", ".join(names + ([f"{len(left) - SHOWN} more"] if left[SHOWN:] else []))
            yield _wrapped(f"after {board.schedule.steps_of(number)} steps: {said}", 3)
    reasons: dict[str, list[str]] = {}
    for cell in mine:
        if board.why(cell):
            reasons.setdefault(board.why(cell), []).append(_short(board, cell))
    for why, names in reasons.items():
        yield _wrapped(f"not played: {', '.join(names)}: {why}", 3)


def _loss(loss: float) -> str:
    return f"{loss:.3g}" if math.isfinite(loss) else "diverged"


# --- All settings ---------------------------------------------------------------------------------


def _overall(board: Board, settings: Sequence[Setting]) -> str:
    """Count for each contestant the settings that it trains in, and in which it is in group A."""
    kinds = _varying(board)
    best = {
        one: {p.cell.contestant for p in places(board, one) if p.group == "A"} for one in settings
    }
    trained: dict[Contestant, list[Setting]] = {}
    for cell in board.cells:
        trained.setdefault(cell.contestant, [])
        if board.trained(cell):
            trained[cell.contestant].append(cell.setting)

    def rank(one: Contestant) -> tuple[int, int]:
        return -len(trained[one]), -_firsts(one)

    def _firsts(one: Contestant) -> int:
        return sum(one in found for found in best.values())

    order = [one for one in sorted(trained, key=rank) if trained[one]]
    whole = len(settings)
    rows = [
        (*_kinds(one, kinds), f"{len(trained[one])} of {whole}", f"{_firsts(one)} of {whole}")
        for one in order[:SHOWN]
    ]
    if not rows:
        return "over all settings: no contestant trains in any"
    more = f"\n   and {len(order) - SHOWN} more that train somewhere" if len(order) > SHOWN else ""
    header = ("", *kinds, "trains in", "best in")
    return "over all settings\n" + _fitted(header, [("", *row) for row in rows]) + more


def _open(board: Board, settings: Sequence[Setting]) -> str:
    lines = []
    for setting in settings:
        for cell in open_problems(board, setting):
            problem = ", ".join(_problem(board, cell))
            steps = board.schedule.steps_of(max(0, board.reached(cell)))
            best = f"{cell.contestant.init} at {_loss(board.loss(cell))}"
            lines.append(f"{named(setting)}, {problem}: nearest is {best} after {steps} steps")
    waiting = sum(unknown(board, setting) for setting in settings)
    if waiting:
        lines.append(f"problems of which nothing is known yet: {waiting}")
    if not lines:
        return "open: nothing; every problem is trained by some initialisation"
    title = "open: what no initialisation here trains" + (", so far" if waiting else "")
    return "\n".join([title, *(_wrapped(one, 3) for one in lines)])


def _problem(board: Board, cell: Cell) -> list[str]:
    kinds = [kind for kind in _varying(board) if kind != "init"] or ["activation"]
    return _names(cell, kinds)


def _legend(board: Board) -> str:
    bars = sorted(map(board.bar, board.by_setting))
    bar = f"{bars[0]:.3g}" if bars[0] == bars[-1] else f"{bars[0]:.3g} to {bars[-1]:.3g}"
    steps, seeds = board.schedule.steps_of(2), board.schedule.seeds
    return _wrapped(
        f"loss: training loss at the end of {steps} steps, median of {seeds} seeds. Contestants "
        "under one letter cannot be told apart from its first: paired over seeds; the intervals of "
        f"a setting hold together with 95 %. Trained is a loss below {bar}, half of a constant "
        "prediction's. lr: the best of those tried; * the lowest or highest of them, so that a "
        "better may lie beyond."
    )


# --- Laying out -----------------------------------------------------------------------------------


def _names(cell: Cell, kinds: Sequence[str]) -> list[str]:
    return _kinds(cell.contestant, kinds)


def _kinds(contestant: Contestant, kinds: Sequence[str]) -> list[str]:
    return [str(getattr(contestant, kind)) for kind in kinds]


def _short(board: Board, cell: Cell) -> str:
    return "/".join(_names(cell, _varying(board)))


def _fitted(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align rows; names are cut from the left, file names first, where the lines are too long."""
    text = columns(header, rows)
    over = max(map(len, text.splitlines())) - WIDTH
    if over <= 0:
        return text
    longest = max(len(cell) for row in rows for cell in row[1:-3])
    most = max(8, longest - over)
    cut = [
        [_cut(cell, most) if 0 < n < len(row) - 3 else cell for n, cell in enumerate(row)]
        for row in rows
    ]
    return columns(header, cut)


def _cut(name: str, most: int) -> str:
    return name if len(name) <= most else "~" + name[1 - most :]


def _wrapped(sentence: str, indent: int = 0) -> str:
    return textwrap.fill(
        sentence,
        WIDTH,
        initial_indent=" " * indent,
        subsequent_indent=" " * (indent + 2 if indent else 0),
        break_on_hyphens=False,
    )
