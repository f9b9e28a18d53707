"""The files that hold the steps of a run: appended to, rotated, and decimated as they grow old.

`steps.jsonl` is written to. Full, it becomes the segment `steps.000007.l0.jsonl`; old segments are
decimated and joined into `steps.000001-000004.l1.jsonl`, and so on, a level for each time.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from steadygrad.core.decimation import TOGETHER, decimated
from steadygrad.core.lines import line_of, rows_of

CURRENT = "steps.jsonl"
NAME = re.compile(r"steps\.(\d{1,12})(?:-(\d{1,12}))?\.l(\d{1,3})\.jsonl")
SEGMENT = 2_000_000  # bytes from which on the current file is rotated
KEPT = 4  # segments of a level; one more, and the oldest is decimated

T = TypeVar("T")


@dataclass(frozen=True, slots=True, order=True)
class Segment:
    """A file of steps that is written no more: the rotations it covers, and how often decimated."""

    first: int
    last: int
    level: int
    path: Path

    def covers(self, other: Segment) -> bool:
        """Whether this was made of the other, which then is a leftover of a crash."""
        inside = self.first <= other.first and other.last <= self.last
        return inside and (self.last - self.first, self.level) > (
            other.last - other.first,
            other.level,
        )


def segments(directory: Path) -> list[Segment]:
    """List the segments of a run, oldest first, without leftovers."""
    found = [segment for path in directory.iterdir() if (segment := _segment(path))]
    return sorted(one for one in found if not any(other.covers(one) for other in found))


def _segment(path: Path) -> Segment | None:
    matched = NAME.fullmatch(path.name)
    if matched is None or not path.is_file():
        return None
    first, last, level = matched.groups()
    return Segment(int(first), int(last or first), int(level), path)


def undisturbed(directory: Path, look: Callable[[list[Segment]], T]) -> T:
    """Look at the files of steps again until no rotation came between."""
    for _ in range(9):
        before = segments(directory)
        try:
            seen = look(before)
        except FileNotFoundError:  # a segment was decimated meanwhile
            continue
        if segments(directory) == before:
            return seen
    return look(segments(directory))


# --- Appending -----------------------------------------------------------------------------------


class Lines:
    """A file to which whole lines are appended.

    It is opened anew each time: a descriptor would go on writing into a file that was removed.
    """

    def __init__(self, path: Path) -> None:
        """Append to a file in a directory that exists."""
        self.path = path
        self._torn = False

    def append(self, lines: Sequence[str]) -> int:
        """Append lines and return the size of the file; after a failure, begin on a new line."""
        data = ("\n" * self._torn + "".join(lines)).encode()
        self._torn = True
        with _opened(self.path) as file:
            while data:
                data = data[os.write(file, data) :]
            size = os.fstat(file).st_size
        self._torn = False
        return size


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
    file = os.open(path, flags, 0o666)
    try:
        yield file
    finally:
        os.close(file)


class Steps:
    """The steps of a run on disk, bounded in size.

    A level holds `KEPT` segments of `SEGMENT` bytes. From the third on it spans ten times as many
    steps as the one below; the first two save less, as the sampled steps in them are too few to be
    decimated. With B bytes of lines in all, a run takes about

        SEGMENT * (1 + KEPT * (2 + log10(B / (KEPT * SEGMENT))))

    and stays below 50 MB up to B = 80 GB. Measured with 300 parameters, scaled down by a hundred:
    24 MB after 10 000 steps, 32 MB after 100 000, 41 MB after 1 000 000 (B = 10 GB). A segment
    holds ten rows at least, whatever their size.
    """

    def __init__(self, directory: Path, segment: int = SEGMENT) -> None:
        """Write into a directory, rotating at `segment` bytes."""
        self._directory = directory
        self._limit = segment
        self._current = Lines(directory / CURRENT)
        self._rows = 0
        self._size = 0

    def append(self, lines: Sequence[str]) -> None:
        """Append lines of rows, and rotate as often as that fills the current file."""
        start = 0
        for place, line in enumerate(lines, 1):
            self._rows += 1
            self._size += len(line)
            if self._size >= self._limit and self._rows % TOGETHER == 0:
                self._current.append(lines[start:place])
                self._rotate()
                start = place
        if start < len(lines):
            self._size = self._current.append(lines[start:])

    def _rotate(self) -> None:
        """Make the current file a segment, and old segments few."""
        self._rows = self._size = 0
        number = max((one.last for one in segments(self._directory)), default=0) + 1
        self._current.path.rename(self._directory / f"steps.{number:06}.l0.jsonl")
        level = 0
        while mine := [one for one in segments(self._directory) if one.level >= level]:
            of_level = [one for one in mine if one.level == level]
            for oldest in of_level[: max(len(of_level) - KEPT, 0)]:
                self._lift(oldest)
            level += 1

    def _lift(self, oldest: Segment) -> None:
        """Decimate a segment into the level above: written, renamed, and only then removed."""
        with oldest.path.open("rb") as file:
            made = "".join(map(line_of, decimated(list(rows_of(file))))).encode()
        above = [one for one in segments(self._directory) if one.level == oldest.level + 1][-1:]
        joined = [one for one in above if one.path.stat().st_size + len(made) <= self._limit]
        before = b"".join(one.path.read_bytes() for one in joined)
        first = min(one.first for one in (*joined, oldest))
        name = f"steps.{first:06}-{oldest.last:06}.l{oldest.level + 1}.jsonl"
        replace(self._directory / name, before + made)
        for one in (*joined, oldest):
            one.path.unlink()


def replace(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    written = path.with_name(f".{path.name}.new")
    try:
        written.write_bytes(data)
        written.replace(path)
    finally:
        written.unlink(missing_ok=True)
