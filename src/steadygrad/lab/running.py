"""Find an experiment by name, run it, and keep what it measured under lab/NAME/."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from steadygrad.core.nearest import meant
from steadygrad.lab.drawing import draw
from steadygrad.lab.experiment import Experiment, Measure, Plan, Result


@dataclass(frozen=True, slots=True)
class Outcome:
    """A result with the experiment that it is of, its plan, and the seconds that it took."""

    experiment: Experiment
    result: Result
    plan: Plan
    seconds: float


def found(name: str, among: Sequence[Experiment]) -> Experiment:
    """Return the experiment of that name; raise with the nearest one."""
    for one in among:
        if one.name == name:
            return one
    known = [one.name for one in among]
    advice = meant(name, known, otherwise="`steadygrad lab` lists them", cutoff=0.4)
    raise ValueError(f"expected the name of an experiment, got {name}{advice}")


def measured(experiment: Experiment, plan: Plan) -> Outcome:
    """Run an experiment on one thread, as its layers are small, and under its own random state."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    begin = time.perf_counter()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(plan.seed)
            result = experiment.run(plan)
    finally:
        torch.set_num_threads(threads)
    return Outcome(experiment, result, plan, time.perf_counter() - begin)


def write(outcome: Outcome, directory: Path) -> Path:
    """Write numbers.json, table.txt, and figure.svg and figure.png below directory/NAME.

    Raises ModuleNotFoundError where matplotlib is missing, when all but the figure is written.
    """
    home = directory / outcome.experiment.name
    home.mkdir(parents=True, exist_ok=True)
    numbers = json.dumps(as_json(outcome), indent=2)
    (home / "numbers.json").write_text(numbers + "\n", encoding="utf-8")
    (home / "table.txt").write_text(table(outcome), encoding="utf-8")
    draw(outcome.result.figure, outcome.experiment.claim, home)
    return home


def as_json(outcome: Outcome) -> dict[str, Any]:  # JSON-like
    """Return all numbers of an outcome; what is not finite is written as a string."""
    experiment, result = outcome.experiment, outcome.result
    told: dict[str, Any] = finite(
        {
            "name": experiment.name,
            "claim": experiment.claim,
            "published": experiment.published,
            "tolerance": experiment.tolerance,
            "source": experiment.source,
            "within": result.within,
            "size": outcome.plan.size,
            "seed": outcome.plan.seed,
            "seconds": round(outcome.seconds, 2),
            "measures": [{**asdict(one), "within": one.within} for one in result.measures],
            "header": list(result.header),
            "rows": [list(row) for row in result.rows],
            "figure": asdict(result.figure),
        }
    )
    return told


def finite(tree: Any) -> Any:  # JSON-like
    """Return a tree in which numbers that are not finite are their text, as JSON knows none."""
    if isinstance(tree, dict):
        return {str(key): finite(value) for key, value in tree.items()}
    if isinstance(tree, Sequence) and not isinstance(tree, str):
        return [finite(one) for one in tree]
    if isinstance(tree, float) and not math.isfinite(tree):
        return str(tree)
    return tree


def earlier(name: str, directory: Path) -> dict[str, Any] | None:  # JSON-like
    """Return the numbers of an earlier run, or None where there are none that can be read."""
    try:
        told = json.loads((directory / name / "numbers.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return told if isinstance(told, dict) else None


def table(outcome: Outcome) -> str:
    """Lay out an outcome as text: the claim, its measures with their bounds, and all rows."""
    experiment, result = outcome.experiment, outcome.result
    measures = [
        (one.name, number(one.published), number(one.ours), bounds(one), verdict(one.within))
        for one in result.measures
    ]
    head = (
        f"{experiment.name}: {experiment.claim}\n{experiment.source}\n\n"
        f"Published: {experiment.published}\nTolerance: {experiment.tolerance}\n\n"
    )
    ours = columns(("measure", "published", "ours", "must lie in", ""), measures)
    rows = columns(result.header, [[number(cell) for cell in row] for row in result.rows])
    size = f"{outcome.seconds:.1f} s, size {outcome.plan.size}, seed {outcome.plan.seed}"
    return f"{head}{ours}\n\n{rows}\n\n{size}\n"


def columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align rows of text under their header."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def verdict(within: bool) -> str:
    """Say whether something is within its bounds."""
    return "within" if within else "OUT"


def bounds(measure: Measure) -> str:
    """Say where a measure must lie."""
    if measure.low == -math.inf:
        return f"<= {measure.high:.4g}"
    if measure.high == math.inf:
        return f">= {measure.low:.4g}"
    return f"{measure.low:.6g} .. {measure.high:.6g}"


def number(value: object) -> str:
    """Write a cell: five digits of a float, nothing for what is not known."""
    if value is None:
        return "-"
    return f"{value:.5g}" if isinstance(value, float) else str(value)
