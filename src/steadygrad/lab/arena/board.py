"""The board: all scores of a competition so far, and what they say of a cell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from steadygrad.lab.arena.grid import Attempt, Cell, Schedule, Score, Setting

LEARNS = 0.5  # of the loss of the best constant prediction, which a training has to fall below


@dataclass(slots=True)
class Board:
    """Scores, put there as attempts end.

    `rates` are the learning rates that a cell has tried, by round; `baseline` is the loss of the
    best constant prediction, NaN where it is not known: then the lowest first loss of a setting
    stands for it.
    """

    task: str
    schedule: Schedule
    cells: Sequence[Cell]
    baseline: float
    scores: dict[Attempt, Score] = field(default_factory=dict)
    rates: list[dict[Cell, tuple[float, ...]]] = field(default_factory=lambda: [{}, {}, {}])
    by_setting: dict[Setting, list[Cell]] = field(init=False)
    firsts: dict[Setting, float] = field(default_factory=dict)  # the lowest first loss of each

    def __post_init__(self) -> None:
        self.by_setting = {}
        for cell in self.cells:
            self.by_setting.setdefault(cell.setting, []).append(cell)

    def put(self, attempt: Attempt, score: Score) -> None:
        """Put a score on the board."""
        self.scores[attempt] = score
        setting = attempt.cell.setting
        self.firsts[setting] = min(score.first, self.firsts.get(setting, math.inf))

    def attempts(self, number: int, cell: Cell) -> list[Attempt]:
        """The attempts that a cell is due in a round, rates lowest first."""
        last = number == self.schedule.rounds - 1
        seeds = range(1, self.schedule.seeds + 1) if last else (0,)
        steps = self.schedule.steps_of(number)
        rates = sorted(self.rates[number].get(cell, ()))
        return [Attempt(cell, self.task, lr, seed, steps) for lr in rates for seed in seeds]

    def told(self, number: int, cell: Cell) -> dict[Attempt, Score]:
        """Those of a round's attempts that have a score."""
        due = self.attempts(number, cell)
        return {one: self.scores[one] for one in due if one in self.scores}

    def reached(self, cell: Cell) -> int:
        """The last round of which a cell has every score; -1 where it has of none."""
        whole = [-1]
        for number in range(self.schedule.rounds):
            due = self.attempts(number, cell)
            if due and all(one in self.scores for one in due):
                whole.append(number)
        return whole[-1]

    def best(self, number: int, cell: Cell) -> tuple[float, float]:
        """The learning rate that won a round, and its loss: the median over the seeds."""
        told = self.told(number, cell)
        ends: dict[float, list[float]] = {}
        for attempt, score in told.items():
            ends.setdefault(attempt.lr, []).append(score.end)
        if not ends:
            return math.nan, math.inf
        return min(((lr, median(found)) for lr, found in ends.items()), key=lambda one: one[1])

    def loss(self, cell: Cell) -> float:
        """The loss of a cell in the last round that it has finished."""
        number = self.reached(cell)
        return math.inf if number < 0 else self.best(number, cell)[1]

    def at_edge(self, cell: Cell) -> bool:
        """Whether the rate that won was the lowest or the highest of those tried."""
        rates = {one.lr for one in self.told(0, cell)}
        lr = self.best(max(self.reached(cell), 0), cell)[0]
        return len(rates) > 1 and lr in (min(rates), max(rates))

    def bar(self, setting: Setting) -> float:
        """The loss below which a network of a setting counts as trained."""
        known = not math.isnan(self.baseline)
        return LEARNS * (self.baseline if known else self.firsts.get(setting, math.inf))

    def trained(self, cell: Cell) -> bool:
        """Whether a cell's loss has come below the bar."""
        return self.loss(cell) < self.bar(cell.setting)

    def why(self, cell: Cell) -> str:
        """Why a cell could not be played at all; empty where it could."""
        found = [score.why for score in self.told(0, cell).values()]
        return found[0] if found and all(w.startswith(("unfit", "failed")) for w in found) else ""
