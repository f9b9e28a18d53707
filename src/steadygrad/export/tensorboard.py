"""Write a run as TensorBoard reads it: scalars in its own format, without TensorBoard."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np

from steadygrad.core.stored import Stored
from steadygrad.core.whole import whole
from steadygrad.export.columns import columns, index
from steadygrad.export.tfevents import opening, records, scalars, tag

TOGETHER = 1000  # scalars of a record at most


def tensorboard(run: Stored, path: Path) -> None:
    """Write a run to a file in a directory; the same run replaces its own file.

    Rows that stand for many steps show their median; what was not read is left out.
    """
    started = run.meta.get("started")
    began = float(started) if isinstance(started, int | float) else 0.0
    path.mkdir(parents=True, exist_ok=True)
    name = f"events.out.tfevents.{int(began)}.steadygrad"
    with whole(path / name) as written, written.open("wb") as file:
        file.writelines(records(chain([opening(began)], _events(run, began))))


def _events(run: Stored, began: float) -> Iterator[bytes]:
    found, (steps, seconds, kinds) = columns(run), index(run)
    names = [*map(tag, found)]
    table = np.stack([*found.values()], axis=1) if found else np.zeros((len(steps), 0), np.float32)
    for number, values in enumerate(table):
        if kinds[number] not in ("step", "median"):
            continue
        read = np.flatnonzero(~np.isnan(values)).tolist()
        for start in range(0, len(read), TOGETHER):
            some = {names[place]: float(values[place]) for place in read[start : start + TOGETHER]}
            yield scalars(began + float(seconds[number]), int(steps[number]), some)
