"""Write a run as CSV: a line for each row, a column for each metric and place."""

from __future__ import annotations

import csv as standard
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from steadygrad.core.stored import Stored
from steadygrad.core.whole import whole
from steadygrad.export.columns import columns, index


def csv(run: Stored, path: Path) -> None:
    """Write a run to a file; what was not read is empty, what is not finite is `inf`."""
    found, (steps, seconds, kinds) = columns(run), index(run)
    table = np.stack([*found.values()], axis=1) if found else np.zeros((len(steps), 0), np.float32)
    with whole(path) as written, written.open("w", encoding="utf-8", newline="") as file:
        writer = standard.writer(file)
        writer.writerow(["step", "seconds", "kind", *found])
        for number, (step, time, kind) in enumerate(zip(steps, seconds, kinds, strict=True)):
            writer.writerow([step, f"{time:.2f}", kind, *_said(table[number].tolist())])


def _said(values: Sequence[float]) -> list[str]:
    """Write numbers with the four digits that they have."""
    return ["" if value != value else f"{value:.4g}" for value in values]
