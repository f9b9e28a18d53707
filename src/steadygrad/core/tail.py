"""Follow a run that is being written: each look reads only what came since the last one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steadygrad.core.decimation import Memory
from steadygrad.core.lines import events_of, rows_of
from steadygrad.core.segments import CURRENT, Segment, undisturbed
from steadygrad.core.steps import Row
from steadygrad.core.stored import EVENTS, Stored, expected, stored

MOST_EVENTS = 1000


class Tail:
    """A follower of a run directory, of bounded memory."""

    def __init__(self, path: Path | str, limit: int = 5_000_000) -> None:
        """Follow a run, holding up to `limit` numbers; raises ValueError where there is no run."""
        self._path = expected(Path(path))
        self._limit = limit
        self._memory = Memory(limit)
        self._events: list[dict[str, Any]] = []  # JSON: see lines.Object
        self._seen = -1  # the newest rotation at the last look
        self._at = 0  # bytes read of the current file
        self._events_at = 0

    def look(self) -> Stored:
        """Read what was appended, and return the run as it is known now."""
        afresh, rows, self._seen, self._at = undisturbed(self._path, self._appended)
        if afresh:
            self._memory = Memory(self._limit)
        for row in rows:
            self._memory.add(row)
        lines, self._events_at = _from(self._path / EVENTS, self._events_at)
        self._events = [*self._events, *events_of(lines)][-MOST_EVENTS:]
        return stored(self._path, self._memory.rows, self._events)

    def _appended(self, found: Sequence[Segment]) -> tuple[bool, list[Row], int, int]:
        """Return whether all was read afresh, the new rows, the newest rotation, and the place.

        What was not seen before it was decimated cannot be told from what was seen: read afresh.
        """
        unseen = [one for one in found if one.last > self._seen]
        afresh = self._seen < 0 or any(one.level > 0 for one in unseen)
        at = 0 if afresh else self._at
        rows: list[Row] = []
        for one in found if afresh else unseen:
            rows += rows_of(_from(one.path, at)[0])
            at = 0
        lines, at = _from(self._path / CURRENT, at)
        newest = max((one.last for one in found), default=0)
        return afresh, rows + list(rows_of(lines)), newest, at


def _from(path: Path, start: int) -> tuple[list[bytes], int]:
    """Read the whole lines behind a place in a file, and the place behind them."""
    if not path.is_file():
        return [], start
    with path.open("rb") as file:
        file.seek(start)
        data = file.read()
    whole = data[: data.rfind(b"\n") + 1]
    return whole.splitlines(), start + len(whole)
