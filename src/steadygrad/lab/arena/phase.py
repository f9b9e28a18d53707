"""The phase diagram: for each contestant, what its cells came to over two axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

from steadygrad.lab.arena.board import Board
from steadygrad.lab.arena.grid import Cell, Contestant
from steadygrad.lab.arena.text import KINDS
from steadygrad.lab.drawing import Map, Panel

Color = Literal["loss", "trained", "gradient"]
MOST = 12  # panels: the contestants whose losses are lowest over all settings

LABELS = {
    "loss": "log10 of the loss",
    "trained": "trained: 1, not: 0",
    "gradient": "decades of the gradient, first block over last, at the start",
}


def phase(board: Board, color: Color) -> Map:
    """Draw gain, or depth where there is one gain, against width, or lr where there is one width.

    Along lr the first round is shown, in which all rates were tried; along width the longest that
    each cell was trained.
    """
    upward = "gain" if len({cell.setting.gain for cell in board.cells}) > 1 else "depth"
    wide = len({cell.setting.width for cell in board.cells}) > 1
    order = _order(board)
    panels = [_panel(board, one, upward, wide, color) for one in order[:MOST]]
    title = f"{board.task}: {len(panels)} of {len(order)} contestants"
    return Map(
        title,
        "width" if wide else "learning rate",
        upward,
        LABELS[color],
        panels,
        color == "gradient",
    )


def _order(board: Board) -> list[Contestant]:
    """Contestants that have scores, by the sum of their losses; a diverged one counts as 1e3."""
    total: dict[Contestant, float] = {}
    for cell in board.cells:
        if board.told(0, cell) and not board.why(cell):
            total.setdefault(cell.contestant, 0.0)
            total[cell.contestant] += min(board.loss(cell), 1e3)
    return sorted(total, key=lambda one: total[one])


def _panel(board: Board, one: Contestant, upward: str, wide: bool, color: Color) -> Panel:
    mine = [cell for cell in board.cells if cell.contestant == one]
    values: dict[tuple[float, float], float] = {}
    for cell in mine:
        y = float(getattr(cell.setting, upward))
        if wide:
            values[cell.setting.width, y] = _of_cell(board, cell, color)
        else:
            values |= {(lr, y): v for lr, v in _along_rates(board, cell, color).items()}
    varying = [k for k in KINDS if len({getattr(c.contestant, k) for c in board.cells}) > 1]
    name = " / ".join(str(getattr(one, kind)) for kind in varying) or one.init
    return Panel(name, values)


def _along_rates(board: Board, cell: Cell, color: Color) -> dict[float, float]:
    colors: dict[Color, Callable[[float, float], float]] = {
        "loss": lambda end, _: _log(end),
        "trained": lambda end, _: float(end < board.bar(cell.setting)),
        "gradient": lambda _, decades: decades,
    }
    told = board.told(0, cell)
    return {key.lr: colors[color](one.end, one.decades) for key, one in told.items()}


def _of_cell(board: Board, cell: Cell, color: Color) -> float:
    if color == "gradient":
        return _first([one.decades for one in board.told(0, cell).values()])
    if board.reached(cell) < 0:
        return math.nan
    return float(board.trained(cell)) if color == "trained" else _log(board.loss(cell))


def _first(numbers: Sequence[float]) -> float:
    return next(iter(numbers), math.nan)


def _log(loss: float) -> float:
    """log10 of a loss, inf of one that diverged; the loss itself where it is not positive."""
    return math.log10(loss) if loss > 0 else loss
