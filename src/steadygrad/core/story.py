"""What a run left besides its steps: its events, what was kept of bad steps, how it was started."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steadygrad.core.lines import events_of, object_of
from steadygrad.core.stored import EVENTS, META, bytes_of

TENSORS = "tensors.safetensors"
MOST = 12  # incidents that are read; a run keeps ten jumps at most, and its first causes
LATEST = 1e11  # seconds of the epoch beyond which a time is none
LARGEST = 50_000_000  # numbers of a ring beyond which it is none of ours

Arrays = Mapping[str, NDArray[Any]]  # numbers of whatever type the file holds


@dataclass(frozen=True, slots=True, eq=False)
class Incident:
    """The steps up to a bad one: `ring` holds `step` [steps], and metrics [steps, sites].

    `path` is where it can be computed again from; empty where its tensors were not kept.
    """

    step: int
    ring: Arrays
    path: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Story:
    """What a report may tell besides its findings; everything may be missing.

    `command` started the run, `versions` are those it was made with, `path` is where it lies.
    """

    events: tuple[Mapping[str, Any], ...] = ()  # JSON: see lines.Object
    incidents: tuple[Incident, ...] = ()
    command: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    started: float = 0.0
    path: str = ""


def story_of(run: Path) -> Story:
    """Read what a run directory holds besides the steps; what is broken is left out."""
    meta, events = (
        object_of(bytes_of(run / META)) or {},
        events_of(bytes_of(run / EVENTS).splitlines()),
    )
    versions, command, started = (meta.get(name) for name in ("versions", "command", "started"))
    return Story(
        tuple(events),
        incidents(run),
        tuple(map(str, command)) if isinstance(command, list) else (),
        {str(k): str(v) for k, v in versions.items()} if isinstance(versions, dict) else {},
        float(started) if isinstance(started, int | float) and 0 < started < LATEST else 0.0,
        str(run),
    )


def incidents(run: Path) -> tuple[Incident, ...]:
    """Read what was kept of bad steps, the first ones first; what cannot be read is left out."""
    below = run / "incidents"
    named = [path for path in below.iterdir() if path.is_dir()] if below.is_dir() else []
    steps = sorted((_step(path), path) for path in named if _step(path) >= 0)[:MOST]
    return tuple(Incident(step, _ring(path / "ring.npz"), _kept(path)) for step, path in steps)


def _kept(path: Path) -> str:
    return str(path) if (path / TENSORS).is_file() else ""


def _step(path: Path) -> int:
    """Return the step of a directory `70`, or `70-2` for its second incident; -1 if it is none."""
    number = path.name.partition("-")[0]
    return int(number) if number.isdecimal() and len(number) < 19 else -1


def _ring(path: Path) -> Arrays:
    """Read arrays of numbers; nothing in the file is executed."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            read = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile):
        return {}
    whole = all(one.dtype.kind in "iuf" and one.size <= LARGEST for one in read.values())
    step = read.get("step")
    if not whole or step is None or step.ndim != 1:
        return {}
    return {
        name: one
        for name, one in read.items()
        if name == "step" or (one.ndim == 2 and len(one) == len(step) and one.shape[1])
    }
