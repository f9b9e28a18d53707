"""What `steadygrad lab arena` does: read the grid, play, and write ranking and phase diagram."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from steadygrad._dask import on_dask
from steadygrad.lab.arena.asking import check_grid, check_numbers, fitting
from steadygrad.lab.arena.board import Board
from steadygrad.lab.arena.grid import Cell, Grid, Schedule
from steadygrad.lab.arena.phase import Color, phase
from steadygrad.lab.arena.playing import INTERRUPTED, Died, Tell, player, pool
from steadygrad.lab.arena.ranking import open_problems, places
from steadygrad.lab.arena.rounds import play_rounds
from steadygrad.lab.arena.store import Store
from steadygrad.lab.arena.tasks import baseline
from steadygrad.lab.arena.text import ranking
from steadygrad.lab.arena.timing import estimated, lasting
from steadygrad.lab.drawing import draw_map
from steadygrad.lab.running import finite

LONG = 1800.0  # seconds that a grid may take without being asked for
MOST_CELLS = 10_000_000  # a list of them fills the memory
NOTHING = 2  # the exit code where nothing could be ranked


@dataclass(frozen=True, slots=True)
class Options:
    """A grid, and how it is played. Without `rates` each optimizer has its own."""

    grid: Grid = field(default_factory=Grid)
    schedule: Schedule = field(default_factory=Schedule)
    rates: Sequence[float] = ()
    directory: Path = Path("lab/arena")
    color: Color = "loss"
    workers: int = 2
    dask: str | None = None
    confirmed: bool = False


def run(options: Options) -> int:
    """Play what has not been played, print the ranking, and write it down.

    Raises ValueError where the grid makes no sense, or would take long and is not confirmed.
    """
    check_grid(options.grid)
    check_numbers(options.schedule, options.rates, options.workers)
    _ask(options)
    board = Board(
        options.grid.task, options.schedule, fitting(options.grid), baseline(options.grid.task)
    )
    code = _play(board, options)
    sys.stdout.write(ranking(board))
    sys.stdout.flush()
    write(board, options)
    sys.stdout.write(f"Written to {options.directory}.\n")
    return code


def _play(board: Board, options: Options) -> int:
    """Play to the end, or until it is interrupted; what is known by then is on the board."""
    store = Store(options.directory)
    opened = pool(options.workers) if options.dask is None else on_dask(options.dask)
    try:
        with opened as executor, _bar(planned(board)) as tell:
            play_rounds(board, options.rates, player(board, store, executor, tell))
    except KeyboardInterrupt:
        sys.stderr.write("steadygrad: interrupted; the same command goes on from here\n")
        return INTERRUPTED
    except Died as error:
        sys.stderr.write(f"steadygrad: {error}\n")
        return NOTHING
    finally:
        store.close()
    if all(map(board.why, board.cells)):
        sys.stderr.write("steadygrad: no contestant could be played; the reasons stand below\n")
        return NOTHING
    return 0


def write(board: Board, options: Options) -> None:
    """Write ranking.txt, ranking.json, phase.svg and phase.png."""
    home = options.directory
    (home / "ranking.txt").write_text(ranking(board), encoding="utf-8")
    told = json.dumps(as_json(board), indent=2, allow_nan=False)
    (home / "ranking.json").write_text(told + "\n", encoding="utf-8")
    shown = phase(board, options.color)
    if shown.panels:
        draw_map(shown, home, "phase")


def as_json(board: Board) -> object:
    """Return the ranking as JSON; what is not finite is written as a string."""
    return finite(
        {
            "task": board.task,
            "schedule": asdict(board.schedule),
            "settings": [
                {
                    **asdict(setting),
                    "bar": board.bar(setting),
                    "places": [
                        {**asdict(one.cell.contestant), **_without_cell(asdict(one))}
                        for one in places(board, setting)
                    ],
                    "open": [asdict(one.contestant) for one in open_problems(board, setting)],
                    "cells": [_cell(board, one) for one in board.by_setting[setting]],
                }
                for setting in sorted(board.by_setting)
            ],
        }
    )


def _cell(board: Board, cell: Cell) -> dict[str, object]:
    """Return what is known of a cell: after so many steps, at its best learning rate."""
    number = board.reached(cell)
    return {
        **asdict(cell.contestant),
        "steps": board.schedule.steps_of(number) if number >= 0 else 0,
        "lr": board.best(number, cell)[0] if number >= 0 else None,
        "loss": board.loss(cell),
        "trained": board.trained(cell),
        "why": board.why(cell),
    }


def _without_cell(told: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in told.items() if name != "cell"}


# --- Playing --------------------------------------------------------------------------------------


def _ask(options: Options) -> None:
    count = options.grid.size
    if count > MOST_CELLS:
        raise ValueError(f"expected at most {MOST_CELLS} cells, got {count}")
    seconds = estimated(options.grid, options.schedule) / options.workers
    if seconds > LONG and not options.confirmed:
        raise ValueError(
            f"{count} cells would take about {lasting(seconds)} with {options.workers} workers: "
            "leave something out, lower --steps, --seeds or --keep, or confirm with --yes"
        )


def planned(board: Board) -> float:
    """Return the work of all rounds, in steps of a block, if as many are kept as planned."""
    return board.schedule.most * sum(max(1, cell.setting.depth) for cell in board.cells)


@contextmanager
def _bar(total: float) -> Iterator[Tell]:
    """Show what is done and the time left, on standard error where that is a terminal."""
    console = Console(stderr=True)
    shown = Progress(
        TextColumn("arena"), BarColumn(), TextColumn("{task.percentage:.0f} %"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip
    with shown:
        task = shown.add_task("arena", total=total)
        yield lambda done: shown.advance(task, done)
