"""Ranks: Student's quantiles, paired intervals, groups, and what nothing trains."""

from __future__ import annotations

import math

import numpy as np
import pytest

from steadygrad.lab.arena.board import Board
from steadygrad.lab.arena.grid import Cell, Contestant, Schedule, Score, Setting
from steadygrad.lab.arena.phase import phase
from steadygrad.lab.arena.ranking import groups, intervals, open_problems, places, scaled, student
from steadygrad.lab.arena.text import ranking

SETTING = Setting(10, 8)


def cell(init: str, activation: str = "relu") -> Cell:
    return Cell(SETTING, Contestant("plain", activation, "none", init, "adam"))


def board_of(losses: dict[Cell, list[float]], baseline: float = 2.0) -> Board:
    """A board whose cells have finished the last round with these losses, one a seed."""
    seeds = max(map(len, losses.values()))
    board = Board("digits", Schedule(40, seeds), list(losses), baseline)
    for one, ends in losses.items():
        for number in range(3):
            board.rates[number][one] = (0.01,)
            for attempt, end in zip(board.attempts(number, one), ends, strict=False):
                board.put(attempt, Score(end, 2.3))
    return board


@pytest.mark.parametrize(
    ("share", "degrees", "quantile"),
    [(0.975, 1, 12.7062), (0.975, 4, 2.77645), (0.975, 30, 2.04227), (0.995, 4, 4.60409)],
)
def test_a_quantile_of_students_t_is_that_of_the_tables(share, degrees, quantile) -> None:
    assert student(share, degrees) == pytest.approx(quantile, rel=1e-4)


def test_intervals_cover_the_truth_together() -> None:
    generator = np.random.default_rng(0)
    missed = 0
    for _ in range(400):
        shared = generator.normal(size=5)  # the seed's own, which pairing takes away
        noise = generator.normal(size=(6, 5))
        low, high = intervals(noise - noise[0] + 0 * shared, 5)
        missed += bool(((low[1:] > 0) | (high[1:] < 0)).any())
    assert missed / 400 < 0.08, "5 % and three standard errors"


def test_a_seeds_own_luck_does_not_hide_a_difference() -> None:
    luck = np.array([0.0, 3.0, -2.0, 5.0, 1.0])
    scale = np.stack([luck, luck + np.array([0.9, 1.0, 1.1, 1.0, 1.05])])
    assert groups(scale) == ["A", "B"]


def test_what_cannot_be_told_apart_shares_a_letter() -> None:
    scale = np.array([[0.0, 0.1, -0.1, 0.0], [0.1, -0.1, 0.1, 0.05], [5.0, 5.1, 5.0, 4.9]])
    assert groups(scale) == ["A", "A", "B"]


def test_losses_that_are_not_positive_are_compared_by_difference() -> None:
    losses = np.array([[1.0, -1.0]])
    assert scaled(losses) is losses
    assert scaled(np.array([[math.e]])) == pytest.approx(np.ones((1, 1)))


def test_places_are_sorted_and_say_how_many_times_the_best() -> None:
    good, bad = cell("level"), cell("he")
    ranked = places(board_of({bad: [0.2, 0.22, 0.21], good: [0.1, 0.11, 0.105]}), SETTING)
    assert [one.cell for one in ranked] == [good, bad]
    assert ranked[1].times == pytest.approx(2.0)
    assert ranked[1].low < 2.0 < ranked[1].high
    assert [one.group for one in ranked] == ["A", "B"]


def test_a_finalist_that_diverges_is_last_and_in_no_group() -> None:
    broken, whole = cell("he"), cell("level")
    ranked = places(board_of({broken: [0.01, math.inf], whole: [0.5, 0.6]}), SETTING)
    assert [one.cell for one in ranked] == [whole, broken]
    assert (ranked[1].broken, ranked[1].group) == (1, "-")
    assert "diverged on 1 of 2 seeds" in ranking(board_of({broken: [0.1, math.inf], whole: [1, 1]}))


def test_a_problem_that_one_initialisation_trains_is_not_open() -> None:
    board = board_of(
        {
            cell("he", "relu"): [0.1, 0.1],
            cell("level", "relu"): [1.9, 1.9],
            cell("he", "gelu"): [1.9, 1.9],
            cell("level", "gelu"): [1.5, 1.5],
        }
    )
    assert open_problems(board, SETTING) == [cell("level", "gelu")]
    assert "gelu: nearest is level at 1.5 after 40 steps" in ranking(board)


def test_without_a_baseline_half_of_the_lowest_first_loss_is_the_bar() -> None:
    board = board_of({cell("he"): [1.0, 1.0]}, baseline=math.nan)
    assert board.bar(SETTING) == pytest.approx(2.3 / 2)


def test_an_empty_board_has_a_ranking_too() -> None:
    board = Board("digits", Schedule(), [cell("he")], 2.0)
    said = ranking(board)
    assert "no final yet of 1" in said
    assert "problems of which nothing is known yet: 1" in said
    assert phase(board, "loss").panels == []


def test_no_line_is_wider_than_a_terminal() -> None:
    name = "a_very_long_directory/with_a_file_in_it.py:and_a_function_that_is_called_so"
    losses = {
        cell(f"{name}{n}", act): [0.1 * n, 0.2] for n in (1, 2, 3) for act in ("relu", "gelu")
    }
    text = ranking(board_of(losses))
    assert max(map(len, text.splitlines())) <= 80, text
