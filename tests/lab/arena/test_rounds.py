"""Rounds: who is tried how often, who goes on, and what an interruption leaves."""

from __future__ import annotations

import math
from collections.abc import Sequence

from steadygrad.lab.arena.board import Board
from steadygrad.lab.arena.grid import Attempt, Grid, Schedule, Score
from steadygrad.lab.arena.rounds import play_rounds, survivors

INITS = ("he", "level", "xavier", "lsuv", "jacobian", "orthogonal", "default")
GRID = Grid(depths=(4,), inits=INITS, activations=("relu",), optimizers=("adam",))
BOWL = {init: number / 10 for number, init in enumerate(INITS, 1)}


def end_of(attempt: Attempt) -> float:
    """A loss that is lowest at lr = 0.003, and that the init shifts."""
    apart = abs(math.log10(attempt.lr / 0.003))
    return BOWL[attempt.cell.contestant.init] + apart / 10


def board_of(keep: float = 0.5, grid: Grid = GRID) -> Board:
    return Board("digits", Schedule(40, 3, keep), grid.cells, 2.3)


def played(board: Board, rates: Sequence[float] = ()) -> list[Attempt]:
    made: list[Attempt] = []

    def play(attempts: Sequence[Attempt]) -> None:
        made.extend(attempts)
        for one in attempts:
            board.put(one, Score(end_of(one), 2.3))

    play_rounds(board, rates, play)
    return made


def test_every_cell_has_as_many_tries_of_its_learning_rate() -> None:
    board = board_of()
    made = played(board)
    assert all(len(board.told(0, cell)) == 5 for cell in board.cells)
    assert len(made) == len(set(made)), "nothing is made twice"


def test_the_search_comes_half_a_decade_from_the_best_rate() -> None:
    board = board_of()
    played(board)
    assert {board.best(0, cell)[0] for cell in board.cells} == {0.0032}
    assert not any(map(board.at_edge, board.cells))


def test_a_rate_at_the_end_of_the_search_is_said_to_be() -> None:
    board = board_of()
    played(board, rates=(0.1, 1.0))
    assert all(board.best(0, cell)[0] == 0.1 and board.at_edge(cell) for cell in board.cells)


def test_half_go_on_and_the_last_round_has_seeds_that_chose_nothing() -> None:
    board = board_of()
    made = played(board)
    reached = [board.reached(cell) for cell in sorted(board.cells, key=board.loss)]
    assert [reached.count(number) for number in range(3)] == [3, 1, 3]
    assert board.reached(board.cells[0]) == 2
    assert {one.seed for one in made if one.steps == 40} == {1, 2, 3}
    assert {one.seed for one in made if one.steps < 40} == {0}


def test_with_keep_1_all_reach_the_last_round() -> None:
    board = board_of(keep=1.0)
    played(board)
    assert {board.reached(cell) for cell in board.cells} == {2}


def test_the_best_of_a_problem_that_nothing_trains_goes_on() -> None:
    grid = Grid((4,), activations=("relu", "gelu"), inits=INITS, optimizers=("sgd",))
    board = board_of(keep=0.25, grid=grid)
    for cell in board.cells:
        board.rates[0][cell] = (0.1,)
        end = BOWL[cell.contestant.init] + 2 * (cell.contestant.activation == "gelu")
        for one in board.attempts(0, cell):
            board.put(one, Score(end, 2.3))
    kept = survivors(board, 0, board.cells)
    named = [(one.contestant.activation, one.contestant.init) for one in kept]
    assert named == [*(("relu", init) for init in INITS[:4]), ("gelu", "he")]


def test_where_all_rates_diverge_lower_ones_are_tried() -> None:
    board = board_of()

    def play(attempts: Sequence[Attempt]) -> None:
        for one in attempts:
            board.put(one, Score(math.inf, 2.3, "diverged at step 1"))

    play_rounds(board, (), play)
    one = board.cells[0]
    assert min(board.rates[0][one]) < min(board.rates[0][one][:3]) / 10
