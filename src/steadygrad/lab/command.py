"""What `steadygrad lab` does: list, run one, run all; with a progress bar on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from steadygrad.lab.catalogue import EXPERIMENTS
from steadygrad.lab.experiment import Experiment, Plan, Size, Tell
from steadygrad.lab.page import page
from steadygrad.lab.running import Outcome, earlier, found, measured, number, table, write

WIDTH = 120  # of lists where standard output is no terminal


def show(directory: Path, among: Sequence[Experiment] = EXPERIMENTS) -> int:
    """List all experiments with their claims and what earlier runs below directory measured."""
    listed = Table(box=None, pad_edge=False)
    for title in ("name", "claim", "published", "ours", "seconds"):
        listed.add_column(title, no_wrap=title == "name", overflow="fold")
    for one in among:
        listed.add_row(one.name, one.claim, one.published, *_ours(one, directory))
    Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False, markup=False).print(
        listed
    )
    return 0


def _ours(experiment: Experiment, directory: Path) -> tuple[str, str]:
    told = earlier(experiment.name, directory)
    if told is None:
        return "not run", ""
    first = told["measures"][0]
    out = "" if told["within"] else " OUT"
    return f"{first['name']}: {number(first['ours'])}{out}", f"{told['seconds']:.1f}"


def run(
    name: str, directory: Path, full: bool, seed: int, among: Sequence[Experiment] = EXPERIMENTS
) -> int:
    """Run one experiment and write it down; print its table."""
    outcome = _one(found(name, among), "full" if full else "default", seed)
    sys.stdout.write(table(outcome))
    home = write(outcome, directory)
    sys.stdout.write(f"Written to {home}.\n")
    return _code([outcome])


def run_all(
    directory: Path, full: bool, seed: int, among: Sequence[Experiment] = EXPERIMENTS
) -> int:
    """Run every experiment, and write each and the page as soon as it is there.

    Without matplotlib all but the figures is written; then ModuleNotFoundError is raised.
    """
    outcomes: list[Outcome] = []
    undrawn: ModuleNotFoundError | None = None
    for one in among:
        outcomes.append(_one(one, "full" if full else "default", seed))
        try:
            write(outcomes[-1], directory)
        except ModuleNotFoundError as error:
            undrawn = error
        (directory / "index.html").write_text(page(outcomes), encoding="utf-8")
        first = outcomes[-1].result.measures[0]
        verdict = "within" if outcomes[-1].result.within else "OUT OF TOLERANCE"
        sys.stdout.write(
            f"{one.name:<16} {outcomes[-1].seconds:6.1f} s  {verdict}  "
            f"{first.name}: {number(first.ours)}\n"
        )
        sys.stdout.flush()
    sys.stdout.write(f"Written to {directory / 'index.html'}.\n")
    if undrawn is not None:
        raise undrawn
    return _code(outcomes)


def _one(experiment: Experiment, size: Size, seed: int) -> Outcome:
    with _bar(experiment.name) as tell:
        return measured(experiment, Plan(size, seed, tell))


@contextmanager
def _bar(name: str) -> Iterator[Tell]:
    """Show the share that is done, on standard error where that is a terminal."""
    console = Console(stderr=True)
    shown = Progress(
        TextColumn(name), BarColumn(), TimeElapsedColumn(), console=console, transient=True,
        disable=not console.is_terminal,
    )  # fmt: skip
    with shown:
        task = shown.add_task(name, total=1.0)
        yield lambda share: shown.update(task, completed=share)


def _code(outcomes: Sequence[Outcome]) -> int:
    """Return 1 where a number is out of its tolerance, which is also said on standard error."""
    out = [one for one in outcomes if not one.result.within]
    for one in out:
        lost = ", ".join(m.name for m in one.result.measures if not m.within)
        sys.stderr.write(
            f"steadygrad: {one.experiment.name} is out of its tolerance ({lost}): a fault of ours "
            "or of this machine's torch; please report with numbers.json\n"
        )
    return 1 if out else 0
