"""How long would a grid take? Some steps are timed, for an estimate before anything is begun."""

from __future__ import annotations

import time
from dataclasses import replace

from steadygrad.lab.arena.grid import Attempt, Cell, Grid, Schedule
from steadygrad.lab.arena.training import performed

TIMED = 5  # steps


def estimated(grid: Grid, schedule: Schedule) -> float:
    """Return about how many seconds one process would take for a grid.

    The first contestant is timed at the smallest and the largest depth, at the largest width;
    between them the time of a step is taken to be linear in the depth.
    """
    shallow, deep = min(grid.depths), max(grid.depths)
    base = _seconds(grid, shallow)
    slope = (_seconds(grid, deep) - base) / (deep - shallow) if deep > shallow else 0.0
    each = sum(base + slope * (depth - shallow) for depth in grid.depths) / len(grid.depths)
    return grid.size * schedule.most * each


def _seconds(grid: Grid, depth: int) -> float:
    """Return the seconds of a step: the faster of two short trainings, after one to warm up."""
    setting = replace(grid.settings[0], depth=depth, width=max(grid.widths))
    cell = Cell(setting, next(grid.contestants))
    attempt = Attempt(cell, grid.task, 1e-4, 0, TIMED)
    performed(attempt)
    return min(_timed(attempt) for _ in range(2)) / TIMED


def _timed(attempt: Attempt) -> float:
    begin = time.perf_counter()
    performed(attempt)
    return time.perf_counter() - begin


def lasting(seconds: float) -> str:
    """Say a time in its largest unit."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"
