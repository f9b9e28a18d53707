"""Many rows become few: of ten, the smallest, the median, and the largest are kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from steadygrad.core.steps import Array, Kind, Row

TOGETHER = 10
"""Rows, or triples of rows, that become three. Chosen by us: a tenth, and what stood out of it."""


def decimated(rows: Sequence[Row]) -> list[Row]:
    """Let three rows stand for ten: min, median, and max of each number, where it was read.

    Rows that stand for others already come in triples: ten triples become one. The least is taken
    of the mins, the median of the medians, the largest of the maxs. A triple bears the step and the
    seconds of the first of its rows. The median is the lower of the two in the middle, so that
    every number kept was read. A metric that was read once among the ten is kept once, in the
    median: it counts when mins and maxs are taken again.
    """
    return [row for group in _groups(rows) for row in _triple(group)]


def _groups(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """Split into groups of ten steps, or of the rows of ten triples."""
    starts = [place for place, row in enumerate(rows) if row.kind in ("step", "min")]
    cuts = [0, *starts[TOGETHER::TOGETHER], len(rows)]
    return (rows[start:end] for start, end in pairwise(cuts) if start < end)


def _triple(group: Sequence[Row]) -> Iterator[Row]:
    middle = [row for row in group if row.kind in ("step", "median")]
    names = dict.fromkeys(name for row in group for name in row.read)
    kept: dict[Kind, dict[str, Array]] = {"min": {}, "median": {}, "max": {}}
    for name in names:
        everything, often = _sorted(group, name)
        kept["median"][name] = _taken(*_sorted(middle, name), 0.5)
        if often.max(initial=0) > 1:
            kept["min"][name] = everything[0]
            kept["max"][name] = _taken(everything, often, 1.0)
    for kind, read in kept.items():
        yield Row(group[0].step, group[0].seconds, read, kind)


def _sorted(rows: Sequence[Row], name: str) -> tuple[Array, NDArray[np.int64]]:
    """Return the readings [rows, sites], sorted with NaN last, and how often each site was read."""
    read = [row.read[name] for row in rows if name in row.read]
    table = np.full((max(len(read), 1), max(map(len, read), default=0)), np.nan, np.float32)
    for line, values in zip(table, read, strict=False):
        line[: len(values)] = values
    return np.sort(table, axis=0), np.count_nonzero(~np.isnan(table), axis=0)


def _taken(table: Array, often: NDArray[np.int64], share: float) -> Array:
    """Take of each sorted column what stands at a share of what was read."""
    at = np.maximum(((often - 1) * share).astype(np.int64), 0)
    taken: Array = np.take_along_axis(table, at[None], axis=0)[0]
    return taken


class Memory:
    """The rows of a run in memory, no more than so many numbers of them.

    Once there are too many, the older half of the level that holds most is decimated into the level
    above, so that old steps grow coarse and new ones stay whole: the law of a run on disk.
    """

    def __init__(self, limit: int = 20_000_000) -> None:
        """Hold up to `limit` numbers of 4 bytes; fewer than ten rows are never made fewer."""
        self._limit = limit
        self._levels: list[list[Row]] = [[]]
        self._sizes = [0]

    def add(self, row: Row) -> None:
        """Add a row that follows all others."""
        level = 0 if row.kind == "step" else 1
        self._hold(level, [row])
        while sum(self._sizes) > self._limit and self._shrink():
            pass

    @property
    def rows(self) -> list[Row]:
        """All rows, oldest first."""
        return [row for level in reversed(self._levels) for row in level]

    def _hold(self, level: int, rows: Sequence[Row]) -> None:
        while len(self._levels) <= level:
            self._levels.append([])
            self._sizes.append(0)
        self._levels[level] += rows
        self._sizes[level] += sum(map(_size, rows))

    def _shrink(self) -> bool:
        """Decimate the older half of the level that holds most; say whether that saved anything."""
        level = int(np.argmax(self._sizes))
        rows = self._levels[level]
        unit = TOGETHER * (1 if level == 0 else 3)
        many = max(len(rows) // 2 // unit, 1) * unit
        older, self._levels[level] = rows[:many], rows[many:]
        before = sum(self._sizes)
        self._sizes[level] -= sum(map(_size, older))
        self._hold(level + 1, decimated(older))
        return sum(self._sizes) < before


def _size(row: Row) -> int:
    return sum(map(len, row.read.values())) + 2
