"""A run on disk as it is written: a thread of its own, so that a slow disk stalls no step."""

from __future__ import annotations

import atexit
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steadygrad.core.lines import json_of, line_of
from steadygrad.core.record import Site
from steadygrad.core.segments import SEGMENT, Lines, Steps, replace
from steadygrad.core.steps import Row
from steadygrad.core.stored import EVENTS, META, holds_a_run

SCHEMA = 1
ROWS = 50  # rows that are written at once
SECONDS = 1.5  # age at which the oldest row is written: a kill loses nothing older than 2 s
MOST_WAITING = 10_000  # rows that wait for a disk that hangs; what comes then is dropped
PATIENCE = 5.0  # seconds that `flush` and `close` wait for a disk

Warn = Callable[[str], None]

# --- Where ---------------------------------------------------------------------------------------


def create(
    directory: Path | str | None,
    name: str,
    warn: Warn,
    *,
    segment: int = SEGMENT,
) -> Writer:
    """Claim a directory for a run and return its writer.

    Without a directory it is `runs/<time>-<name>`. One that holds a run already is left alone: the
    run goes to its sibling `-2`, `-3`, and so on; `path` of the writer says where. Where nothing
    can be written, `warn` is told, once, and the writer drops what it is given.
    """
    wanted = Path("runs", f"{time.strftime('%Y%m%d-%H%M%S')}-{_harmless(name)}")
    wanted = wanted if directory is None else Path(directory)
    meta = {"schema": SCHEMA, "name": name, "started": time.time()}
    try:
        path = next(path for path in _siblings(wanted) if _claimed(path, meta))
    except OSError as error:
        warn(_unwritten(wanted, error))
        return Writer(wanted, meta, warn, told=True, segment=segment)
    return Writer(path, meta, warn, segment=segment)


def _siblings(path: Path) -> Iterator[Path]:
    yield path
    for number in count(2):
        yield path.with_name(f"{path.name}-{number}")


def _claimed(path: Path, meta: Mapping[str, Any]) -> bool:
    """Take a directory that holds no run; only one of two processes gets it."""
    path.mkdir(parents=True, exist_ok=True)
    if holds_a_run(path):
        return False
    try:
        with (path / META).open("x", encoding="utf-8") as file:
            file.write(json_of(meta))
    except FileExistsError:
        return False
    return True


def _harmless(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:60] or "run"


def _unwritten(path: Path, error: Exception) -> str:
    why = (isinstance(error, OSError) and error.strerror) or f"{type(error).__name__}: {error}"
    return f"expected to write the run to {path}, got {why}: training goes on, unrecorded"


# --- The writer ----------------------------------------------------------------------------------


class Writer:
    """Writes a run from a thread of its own; what cannot be written is dropped after one warning.

    A forked child writes nothing. The end of the interpreter closes the run.
    """

    path: Path
    """The directory of the run."""

    def __init__(
        self,
        path: Path,
        meta: Mapping[str, Any],
        warn: Warn,
        *,
        told: bool = False,
        segment: int = SEGMENT,
    ) -> None:
        """Write into a directory that `create` has claimed."""
        self.path = path
        self._meta = dict(meta)
        self._warn = warn
        self._told = told
        self._steps = Steps(path, segment)
        self._events = Lines(path / EVENTS)
        self._process = os.getpid()
        self._wake = threading.Condition()
        self._rows: list[Row] = []
        self._jobs: list[Callable[[], object]] = []
        self._last = 0
        self._due = 0.0
        self._hurried = self._busy = self._closing = False
        self._thread = threading.Thread(target=self._run, name="steadygrad-store", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def meta(self, known: Mapping[str, Any], sites: Sequence[Site] = ()) -> None:
        """Add to what is known of the run, and write all of it anew."""
        self._meta |= known
        if sites:
            self._meta["sites"] = [asdict(site) for site in sites]
        self._do(partial(replace, self.path / META, json_of(self._meta).encode()))

    def add(self, row: Row) -> None:
        """Write a row soon; its arrays are not copied."""
        if self._elsewhere:
            return
        with self._wake:
            if self._closing or len(self._rows) >= MOST_WAITING:
                return
            if not self._rows:
                self._due = time.monotonic() + SECONDS
            self._rows.append(row)
            self._last = row.step
            if len(self._rows) in (1, ROWS):
                self._wake.notify_all()

    def event(self, event: Mapping[str, Any]) -> None:
        """Write an event at once: a step, a kind, and whatever JSON can say."""
        self._do(partial(self._events.append, [json_of(event) + "\n"]))

    def incident(self, step: int) -> Path | None:
        """Make a directory for what a step leaves behind; None where that cannot be."""
        if self._elsewhere:
            return None
        try:
            return next(
                path
                for path in _siblings(self.path / "incidents" / str(step))
                if _made(path, self.path)
            )
        except OSError as error:
            self._fail(error)
            return None

    def save(self, path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write arrays of numbers to an `.npz` soon; they are not copied."""
        self._do(partial(_save, path, dict(arrays)))

    def do(self, job: Callable[[], object]) -> None:
        """Do something on the disk soon, in the writer's thread."""
        self._do(job)

    def flush(self, patience: float = PATIENCE) -> bool:
        """Wait until all is written, so many seconds at most; say whether it is."""
        if self._elsewhere:
            return False
        with self._wake:
            self._hurried = True
            self._wake.notify_all()
            return self._wake.wait_for(self._is_idle, patience)

    def close(self, patience: float = PATIENCE) -> None:
        """Write the rest and the event `end`; nothing is written afterwards."""
        if self._elsewhere or self._closing:
            return
        self.event({"step": self._last, "kind": "end"})
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        self._thread.join(patience)
        atexit.unregister(self.close)

    @property
    def _elsewhere(self) -> bool:
        """Whether this is a forked child: the thread is not there, and a lock may be held."""
        return os.getpid() != self._process

    # --- The thread ------------------------------------------------------------------------------

    def _do(self, job: Callable[[], object]) -> None:
        if self._elsewhere:
            return
        with self._wake:
            if not self._closing and len(self._jobs) < MOST_WAITING:
                self._jobs.append(job)
                self._wake.notify_all()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._is_due():
                    self._wake.wait(self._due - time.monotonic() if self._rows else None)
                rows, self._rows = self._rows, []
                jobs, self._jobs = self._jobs, []
                self._hurried, self._busy = False, True
                closing = self._closing
            self._write(rows, jobs)
            with self._wake:
                self._busy = False
                self._wake.notify_all()
            if closing:
                return

    def _is_due(self) -> bool:
        now = self._hurried or self._closing or self._jobs or len(self._rows) >= ROWS
        return bool(now or (self._rows and time.monotonic() >= self._due))

    def _is_idle(self) -> bool:
        return not (self._rows or self._jobs or self._busy)

    def _write(self, rows: Sequence[Row], jobs: Sequence[Callable[[], object]]) -> None:
        append = partial(self._append, rows) if rows else None
        for job in (append, *jobs):
            try:
                if job is not None:
                    job()
            except Exception as error:  # no fault of ours or the disk's ends a run
                self._fail(error)

    def _append(self, rows: Sequence[Row]) -> None:
        self._steps.append([line_of(row) for row in rows])

    def _fail(self, error: Exception) -> None:
        if not self._told:
            self._told = True
            self._warn(_unwritten(self.path, error))


def _made(path: Path, run: Path) -> bool:
    run.stat()  # a run that was removed is not made again
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        return False
    return True


def _save(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    np.savez(path, allow_pickle=False, **arrays)
