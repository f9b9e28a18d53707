"""What was asked for: a grid of names and numbers, and whether it makes sense."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from steadygrad.lab.arena.contestants import (
    DEFAULT,
    NONE,
    NORMS,
    SWAPS,
    TRANSFORMERS,
    expect,
    is_file,
)
from steadygrad.lab.arena.grid import DIGITS, Cell, Grid, Schedule
from steadygrad.lab.arena.tasks import takes

OWN = "own"  # the architecture of a task of the user's own
AXES = {
    "architecture": "architectures",
    "activation": "activations",
    "norm": "norms",
    "init": "inits",
    "optimizer": "optimizers",
}
"""Kinds of names, and the axes of a grid that they are on."""


NUMBERS: Mapping[str, Callable[[str], object]] = {
    "depths": int,
    "widths": int,
    "gains": float,
    "lr": float,
}


def asked(task: str, given: Mapping[str, str | None]) -> tuple[Grid, Sequence[float]]:
    """Return the grid of a task and its learning rates, from values separated by commas."""
    read = {name: _read(name, text) for name, text in given.items() if text is not None}
    rates = [float(str(one)) for one in read.pop("lr", ())]
    return grid_of(task, read), rates


def _read(name: str, text: str) -> list[object]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    try:
        return [NUMBERS.get(name, str)(word) for word in words]
    except ValueError:
        raise ValueError(f"expected --{name} as numbers, such as 1,2,3, got {text}") from None


def grid_of(task: str, given: Mapping[str, Sequence[object]]) -> Grid:
    """Return the grid of a task with the axes that are given; raise ValueError where it has none.

    A task of the user's own stays as it is along all axes that are not given but initialisations
    and optimizers.
    """
    if task == DIGITS:
        return Grid(**given)  # type: ignore[arg-type] # axes by name, as the command has them
    expect("task", task, (DIGITS,))
    missing = {"depth", "width"} - takes(task)
    for name in missing:
        if given.get(f"{name}s"):
            raise ValueError(
                f"expected {task} to take `{name}`, for --{name}s: it does not, give it that "
                "parameter or leave the option out"
            )
    if given.get("architectures"):
        raise ValueError(f"expected no --architecture with {task}, which makes its own model")
    own: dict[str, Sequence[object]] = {
        "depths": (0,),
        "widths": (0,),
        "architectures": (OWN,),
        "activations": (DEFAULT,),
    }
    own |= {"norms": (NONE,), "inits": (DEFAULT, "he", "level", "edge-of-chaos", "lsuv")}
    return Grid(**(own | dict(given)), task=task)  # type: ignore[arg-type] # as above


def check_grid(grid: Grid) -> None:
    """Raise ValueError where a name stands for nothing, or a number is out of range."""
    least = 1 if grid.task == DIGITS else 0
    for option, numbers in (("--depths", grid.depths), ("--widths", grid.widths)):
        _expect_distinct(option, numbers)
        if min(numbers) < least:
            raise ValueError(f"expected {option} of 1 or more, got {min(numbers)}")
    _expect_distinct("--gains", grid.gains)
    if not all(0 < gain < math.inf for gain in grid.gains):
        raise ValueError(f"expected positive --gains, got {','.join(map(str, grid.gains))}")
    for kind, axis in AXES.items():
        names: Sequence[str] = getattr(grid, axis)
        _expect_distinct(f"--{kind}", names)
        for name in names:
            _expect_name(grid.task, kind, name)
    odd = [width for width in grid.widths if width % 4]
    if odd and set(grid.architectures) & set(TRANSFORMERS):
        raise ValueError(f"expected --widths that 4 heads divide for Transformers, got {odd[0]}")


def _expect_distinct(option: str, values: Sequence[object]) -> None:
    if not values or len(set(values)) < len(values):
        raise ValueError(
            f"expected {option} with one value or more, each once, got "
            f"{','.join(map(str, values)) or 'none'}"
        )


def _expect_name(task: str, kind: str, name: str) -> None:
    if task == DIGITS or kind in ("init", "optimizer"):
        expect(kind, name)
    elif kind != "architecture":
        if is_file(name):
            raise ValueError(f"expected --{kind} by name, got {name}: make it in {task} itself")
        expect(kind, name, SWAPS if kind == "activation" else tuple(NORMS))


def check_numbers(schedule: Schedule, rates: Sequence[float], workers: int) -> None:
    """Raise ValueError where a number is out of range."""
    if schedule.steps < 40:
        raise ValueError(f"expected --steps of 40 or more, got {schedule.steps}: fewer say nothing")
    if schedule.seeds < 2:
        raise ValueError(f"expected --seeds of 2 or more, got {schedule.seeds}: one proves nothing")
    if not 0 < schedule.keep <= 1:
        raise ValueError(f"expected --keep above 0 and up to 1, got {schedule.keep:g}")
    if len(set(rates)) < len(rates) or not all(0 < lr < math.inf for lr in rates):
        raise ValueError(f"expected positive --lr, each once, got {','.join(map(str, rates))}")
    if workers < 1:
        raise ValueError(f"expected --workers of 1 or more, got {workers}")


def fitting(grid: Grid) -> list[Cell]:
    """Return the cells; norms are not multiplied with Transformers, which have their own."""
    first = grid.norms[0]
    return [
        cell
        for cell in grid.cells
        if cell.contestant.architecture not in TRANSFORMERS or cell.contestant.norm == first
    ]
