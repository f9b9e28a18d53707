"""A run read from disk: nothing in it is executed, and what is broken is left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, get_args

from steadygrad.core.lines import NOT_OURS, events_of, object_of, rows_of
from steadygrad.core.record import Record, Role, Site
from steadygrad.core.segments import CURRENT, Segment, segments, undisturbed
from steadygrad.core.steps import Row, record_of_rows

META, EVENTS = "meta.json", "events.jsonl"
ROLES = get_args(Role)


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """A run: what is known of it, where was read, the rows sorted by step, and the events."""

    path: Path
    meta: Mapping[str, Any]  # JSON: see lines.Object
    sites: tuple[Site, ...]
    rows: tuple[Row, ...]
    events: tuple[Mapping[str, Any], ...]


def read(path: Path | str) -> Stored:
    """Read a run directory, also one that is being written or was cut off.

    Raises ValueError where there is no run at all.
    """
    directory = expected(Path(path))
    rows = undisturbed(directory, lambda found: _rows(directory, found))
    return stored(directory, rows, list(events_of(_lines(directory / EVENTS))))


def stored(directory: Path, rows: Sequence[Row], events: Sequence[Mapping[str, Any]]) -> Stored:
    """Join rows and events with what meta.json says now."""
    meta = object_of(bytes_of(directory / META)) or {}
    ordered = tuple(sorted(rows, key=attrgetter("step")))
    return Stored(directory, meta, tuple(_sites(meta.get("sites"))), ordered, tuple(events))


def record_of(run: Stored) -> Record:
    """Join the rows of a run into a Record; its facts are those of meta.json."""
    facts = run.meta.get("facts")
    return record_of_rows(run.sites, run.rows, facts if isinstance(facts, dict) else {})


def expected(path: Path) -> Path:
    """Return the path of a run directory, or raise ValueError."""
    if holds_a_run(path):
        return path
    raise ValueError(f"expected a run directory, got {path}: `steadygrad run train.py` makes one")


def holds_a_run(path: Path) -> bool:
    """Whether a directory holds files of a run."""
    if any((path / name).is_file() for name in (META, CURRENT, EVENTS)):
        return True
    return path.is_dir() and bool(segments(path))


def newest(runs: Path) -> Path:
    """Return the run below a directory that was written last, or the directory if there is none."""
    inside = [path for path in runs.iterdir() if holds_a_run(path)] if runs.is_dir() else []
    return max(inside, key=written, default=runs)


def written(run: Path) -> float:
    """Return when a run was last written, in seconds of the epoch."""
    files = [run / name for name in (META, CURRENT, EVENTS)]
    return max((path.stat().st_mtime for path in files if path.is_file()), default=0.0)


# --- Files ---------------------------------------------------------------------------------------


def _rows(directory: Path, found: Sequence[Segment]) -> list[Row]:
    rows = [row for one in found for row in rows_of(one.path.read_bytes().splitlines())]
    return rows + list(rows_of(_lines(directory / CURRENT)))


def _lines(path: Path) -> list[bytes]:
    return bytes_of(path).splitlines()


def bytes_of(path: Path) -> bytes:
    """Return what is in a file; nothing where there is none."""
    return path.read_bytes() if path.is_file() else b""


def _sites(listed: object) -> Iterator[Site]:
    """Read sites up to the first that is none: arrays follow their order."""
    for one in listed if isinstance(listed, list) else ():
        try:
            site = _site(one)
        except (*NOT_OURS, LookupError):
            return
        yield site


def _site(one: Mapping[str, Any]) -> Site:
    if one["role"] not in ROLES:
        raise ValueError(f"a role is one of {ROLES}, got {one['role']}")
    shape = tuple(int(size) for size in one.get("shape", ()))
    place = int(one.get("depth", -1)), str(one.get("kind", "")), int(one.get("fan_in", 0))
    return Site(str(one["name"]), one["role"], *place, shape)
