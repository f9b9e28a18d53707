"""Rank the finalists of a setting over paired seeds; say which cannot be told apart.

Losses of one seed share batches, so that differences are taken seed by seed. Losses are compared by
their ratio, as their logarithms spread evenly where losses do not; by their difference where some
are not positive.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steadygrad.lab.arena.board import Board
from steadygrad.lab.arena.grid import Cell, Setting

Array = NDArray[np.float64]
LEVEL = 0.05  # of being wrong about any interval of a setting


@dataclass(frozen=True, slots=True)
class Place:
    """A finalist. `losses` [seeds]; `times` the first's loss, `low` to `high` its interval.

    Places of one `group` cannot be told apart from the best of that group. `broken` seeds diverged;
    with any of them a finalist is in no group, NaN stands for its numbers.
    """

    cell: Cell
    lr: float
    at_edge: bool
    losses: tuple[float, ...]
    group: str
    times: float
    low: float
    high: float

    @property
    def broken(self) -> int:
        """The number of seeds that diverged."""
        return sum(math.isinf(one) for one in self.losses)


def places(board: Board, setting: Setting) -> list[Place]:
    """Rank the cells of a setting that have finished the last round, best first."""
    final = board.schedule.rounds - 1
    cells = [cell for cell in board.by_setting[setting] if board.reached(cell) == final]
    losses = {cell: tuple(one.end for one in board.told(final, cell).values()) for cell in cells}
    whole = [cell for cell in cells if all(map(math.isfinite, losses[cell]))]
    order: list[Cell] = []
    if whole:
        scale = scaled(np.array([losses[cell] for cell in whole]))
        order = [whole[n] for n in np.argsort(scale.mean(axis=1), kind="stable")]
    ranked = _ranked(np.array([losses[cell] for cell in order])) if order else []
    broken = sorted(set(cells) - set(whole), key=lambda c: sorted(losses[c]))
    nothing = ("-", math.nan, math.nan, math.nan)
    rows = [*zip(order, ranked, strict=True), *((cell, nothing) for cell in broken)]
    return [
        Place(cell, board.rates[final][cell][0], board.at_edge(cell), losses[cell], *row)
        for cell, row in rows
    ]


def scaled(losses: Array) -> Array:
    """Return ln of losses, or losses where some are not positive, [contestants, seeds]."""
    return np.log(losses) if (losses > 0).all() else losses


def _ranked(losses: Array) -> list[tuple[str, float, float, float]]:
    """Return group, ratio to the best, and its interval for losses [contestants, seeds], sorted."""
    scale = scaled(losses)
    back = np.exp if (losses > 0).all() else np.positive
    names = groups(scale)
    low, high = intervals(scale - scale[0], len(scale) - 1)
    times, low, high = (back(one).tolist() for one in ((scale - scale[0]).mean(axis=1), low, high))
    return list(zip(names, times, low, high, strict=True))


def groups(scale: Array) -> list[str]:
    """Name the groups of scores [contestants, seeds], sorted.

    A group has its best, and all that no interval of their paired difference tells apart from it.
    """
    names = [""] * len(scale)
    for number, letter in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZ"):
        free = [n for n, name in enumerate(names) if not name]
        if not free:
            break
        low, _ = intervals(scale[free] - scale[free[0]], len(scale) - 1)
        for n, least in zip(free, low, strict=True):
            if n == free[0] or not least > 0 or number == 25:
                names[n] = letter
    return names


def intervals(differences: Array, comparisons: int) -> tuple[Array, Array]:
    """Return the ends of intervals [rows] of mean differences [rows, seeds].

    All together hold with 95 %: each has the level 5 % over the number of comparisons (Bonferroni).
    With a single seed they are infinite.
    """
    seeds = differences.shape[1]
    mean = differences.mean(axis=1)
    if seeds < 2:
        return mean - math.inf, mean + math.inf
    half = student(1 - LEVEL / 2 / max(1, comparisons), seeds - 1)
    error = differences.std(axis=1, ddof=1) / math.sqrt(seeds)
    return mean - half * error, mean + half * error


def student(share: float, degrees: int) -> float:
    """Return a quantile of Student's t, to 1e-4 of itself.

    With t = sqrt(degrees) tan(a) the density of a is proportional to cos(a)^(degrees - 1), which is
    added up over a fine grid.
    """
    angle = np.linspace(0.0, math.pi / 2, 200_001)
    density = np.cos(angle) ** (degrees - 1)
    below = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    found = np.interp(2 * share - 1, below / below[-1], angle)
    return float(math.sqrt(degrees) * np.tan(found))


def open_problems(board: Board, setting: Setting) -> list[Cell]:
    """Return the best cell of each problem of a setting that no initialisation trains.

    Problems of which no cell could be played, or none has finished, are none.
    """
    best: dict[Sequence[str], Cell] = {}
    for cell in board.by_setting[setting]:
        if board.why(cell) or board.reached(cell) < 0:
            continue
        held = best.get(cell.contestant.problem)
        if held is None or _further(board, cell) < _further(board, held):
            best[cell.contestant.problem] = cell
    trained = [cell for cell in board.by_setting[setting] if board.trained(cell)]
    solved = {cell.contestant.problem for cell in trained}
    return [cell for problem, cell in best.items() if problem not in solved]


def unknown(board: Board, setting: Setting) -> int:
    """Return of how many problems of a setting no cell has finished a round, though it may yet."""
    cells = [cell for cell in board.by_setting[setting] if not board.why(cell)]
    known = {cell.contestant.problem for cell in cells if board.reached(cell) >= 0}
    return len({cell.contestant.problem for cell in cells} - known)


def _further(board: Board, cell: Cell) -> tuple[int, float]:
    return -board.reached(cell), board.loss(cell)
