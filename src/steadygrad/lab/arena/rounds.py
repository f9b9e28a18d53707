"""Successive halving: all cells for a short while, the better half for longer, the best longest.

Jamieson & Talwalkar 2016, Non-stochastic best arm identification and hyperparameter optimization,
algorithm 1; here within each setting, and with a search for the learning rate in each cell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

from steadygrad.lab.arena.board import Board
from steadygrad.lab.arena.contestants import rates_of
from steadygrad.lab.arena.grid import Attempt, Cell

Play = Callable[[Sequence[Attempt]], None]  # makes attempts and puts their scores on the board

FINER = 10**0.5  # half a decade
LEAST = 3  # cells of a setting that go on at least: a final of one compares nothing


def play_rounds(board: Board, rates: Sequence[float], play: Play) -> None:
    """Play all rounds; `rates` are tried instead of each optimizer's own, where there are any.

    Every cell has the same number of tries: three rates a decade apart, then both neighbors, half
    a decade away, of the best of them. Given rates are tried as they are.
    """
    first, second, last = board.rates
    first |= {cell: tuple(rates or rates_of(cell.contestant.optimizer)) for cell in board.cells}
    _play(board, 0, board.cells, play)
    if not rates:
        first |= {cell: (*first[cell], *_neighbors(board, cell)) for cell in _playable(board)}
        _play(board, 0, _playable(board), play)
    alive = survivors(board, 0, _playable(board))
    second |= {cell: _better(board, cell) for cell in alive}
    _play(board, 1, alive, play)
    alive = survivors(board, 1, alive)
    last |= {cell: (board.best(1, cell)[0],) for cell in alive}
    _play(board, 2, alive, play)


def _play(board: Board, number: int, cells: Iterable[Cell], play: Play) -> None:
    due = [one for cell in cells for one in board.attempts(number, cell)]
    play([one for one in due if one not in board.scores])


def _playable(board: Board) -> list[Cell]:
    return [cell for cell in board.cells if not board.why(cell)]


def _neighbors(board: Board, cell: Cell) -> tuple[float, float]:
    """Rates half a decade below and above the best, rounded as they are shown."""
    best = board.best(0, cell)[0]
    if math.isinf(board.best(0, cell)[1]):  # all diverged: lower ones may not
        best = min(board.rates[0][cell]) / 10
    return float(f"{best / FINER:.2g}"), float(f"{best * FINER:.2g}")


def _better(board: Board, cell: Cell) -> tuple[float, ...]:
    """The two best rates of the first round."""
    ends = {one.lr: score.end for one, score in board.told(0, cell).items()}
    return tuple(sorted(ends, key=lambda lr: (ends[lr], lr))[:2])


def survivors(board: Board, number: int, cells: Sequence[Cell]) -> list[Cell]:
    """Keep the best share of each setting's cells, and the best of each problem not yet trained.

    The latter are what is open: that nothing trains them is said of the whole length alone.
    """
    kept: list[Cell] = []
    for _, group in groupby(sorted(cells), lambda cell: cell.setting):
        order = sorted(group, key=lambda cell: board.best(number, cell)[1])
        count = max(LEAST, math.ceil(len(order) * board.schedule.keep))
        solved = {one.contestant.problem for one in order if _below(board, number, one)}
        for place, cell in enumerate(order):
            problem = cell.contestant.problem
            if place < count or problem not in solved:
                kept.append(cell)
            solved.add(problem)
    return kept


def _below(board: Board, number: int, cell: Cell) -> bool:
    return board.best(number, cell)[1] < board.bar(cell.setting)
