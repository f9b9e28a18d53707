"""The events of a guarded run, the last of them, and what they suggest."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, overload

import numpy as np

from steadygrad.guards.policy import Event

NUMBERS = 2_000_000  # float64
QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.999)


class History(Sequence[Event]):
    """The last events, oldest first; counts are of the whole run.

    The norms of single parameters are kept for as many of the last events as fit into 16 MB.
    """

    def __init__(self, keep: int = 10_000) -> None:
        self._events: deque[Event] = deque(maxlen=keep)
        self._whole = 0  # events at the end that have their norms
        self.steps = self.clipped = self.skipped = 0

    def add(self, event: Event) -> None:
        """Append an event."""
        self._events.append(event)
        most = NUMBERS // max(1, 0 if event.norms is None else len(event.norms))
        self._whole = min(self._whole + 1, max(1, most), len(self._events))
        place = len(self._events) - self._whole - 1
        if place >= 0:
            self._events[place] = replace(self._events[place], norms=None)
        self.steps += 1
        self.clipped += event.clipped
        self.skipped += event.skipped

    def __len__(self) -> int:
        return len(self._events)

    @overload
    def __getitem__(self, place: int) -> Event: ...
    @overload
    def __getitem__(self, place: slice) -> list[Event]: ...
    def __getitem__(self, place: int | slice) -> Event | list[Event]:
        if not self._events and not isinstance(place, slice):
            raise IndexError("no step has been made since guard(): the history is empty")
        return list(self._events)[place] if isinstance(place, slice) else self._events[place]

    def __iter__(self) -> Iterator[Event]:
        return iter(self._events)

    @property
    def norms(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Finite norms before clipping [events]."""
        norms = np.array([one.norm for one in self._events], dtype=np.float64)
        return norms[np.isfinite(norms)]

    def __repr__(self) -> str:
        return f"History({self.steps} steps, {self.clipped} clipped, {self.skipped} skipped)"


def suggestion(history: History) -> str:
    """A table of what a threshold would have done, and what the run's own did."""
    norms = history.norms
    if not len(norms):
        return "no finite gradient norm has been seen yet"
    lines = [f"gradient norms of {len(norms)} steps", "", "  max_norm   would have clipped"]
    lines += [
        f"  {limit:<9.3g}  {_share(norms > limit)}  {note}"
        for limit, note in _limits(norms, history)
    ]
    lines += ["", f"clipped {history.clipped}, skipped {history.skipped} of {history.steps} steps"]
    return "\n".join(line.rstrip() for line in lines)


def _limits(
    norms: np.ndarray[Any, np.dtype[np.float64]], history: History
) -> list[tuple[float, str]]:
    limits = [(float(np.quantile(norms, q)), f"p{100 * q:g}") for q in QUANTILES]
    mine = [one.threshold for one in history if math.isfinite(one.threshold)]
    used = [(mine[-1], "in use now")] if mine else []
    return sorted([(1.0, "the usual default"), *limits, *used])


def _share(above: np.ndarray[Any, Any]) -> str:
    return f"{above.mean():7.1%}"
