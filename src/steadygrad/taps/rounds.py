"""Puts the readings of optimizers that step in turn together into rows.

A round is a step of each optimizer at most; it ends when one of them steps again. On the host,
readings wait until there are some dozens, since many at once are cheaper than each alone beside a
training that has just driven everything out of the caches. On a device they are sent on their way,
and come to their row when they have arrived.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steadygrad.core.record import Role
from steadygrad.core.steps import METRICS, OF_STEP, Array, Row
from steadygrad.guards.mailbox import Mailbox
from steadygrad.guards.number import Number
from steadygrad.taps.catalogue import Places

LARGEST = float(np.finfo(np.float32).max)
SHARES = ("moved", "dead", "saturated")
MANY = 32  # steps that wait on the host: chosen by us
Wide = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Reading:
    """Numbers of one metric, and the places of the sites at which they were read."""

    metric: str
    places: Places
    numbers: Tensor  # one axis


@dataclass(frozen=True, slots=True)
class Step:
    """What was read of one optimizer's step.

    `scalars` are in the order of OF_STEP, None for one that was not read. `late` says that some of
    the numbers lie on a device, where reading them would wait.
    """

    number: int
    seconds: float
    place: int
    scalars: Sequence[Number | None]
    readings: Sequence[Reading]
    late: bool = False


@dataclass(slots=True)
class _Open:
    """A row that may still get readings."""

    step: int
    seconds: float
    read: list[tuple[str, Places, Array]] = field(default_factory=list)


class Rounds:
    """Rows in the making. `keep` gets each when it is complete, in order."""

    def __init__(self, keep: Callable[[Row], None], count: Callable[[Role], int]) -> None:
        self._keep, self._count = keep, count
        self._open: _Open | None = None
        self._waiting: list[Step] = []
        self._mailbox = Mailbox()
        self._posted: deque[Step] = deque()

    def add(self, one: Step) -> None:
        """Add what was read of a step."""
        if not one.late and not self._posted:
            self._waiting.append(one)
            if len(self._waiting) >= MANY:
                self.settle()
            return
        self.settle()
        scalars = _stacked([s for s in one.scalars if s is not None])
        parts = [r.numbers.to(scalars.device, torch.float64) for r in one.readings]
        self._mailbox.post(one.number, torch.cat([scalars, *parts]))
        self._posted.append(one)
        self._deliver()

    def settle(self, *, wait: bool = False) -> None:
        """Make rows of what is waiting, and of what has come from a device."""
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            numbers = [(r.metric, r.places, r.numbers.double().numpy()) for r in one.readings]
            self._arrived(one, [0.0 if s is None else float(s) for s in one.scalars], numbers)
        self._deliver(wait=wait)

    def peek(self) -> Row | None:
        """The last row, as it is now."""
        self.settle()
        return None if self._open is None else self._row(self._open)

    def close(self) -> None:
        """Wait for everything, and hand out the last row."""
        self.settle(wait=True)
        if self._open is not None:
            self._keep(self._row(self._open))
            self._open = None

    def _deliver(self, *, wait: bool = False) -> None:
        for _, numbers in self._mailbox.arrived(wait=wait):
            one = self._posted.popleft()
            read = [place for place, scalar in enumerate(one.scalars) if scalar is not None]
            scalars = np.zeros(len(one.scalars))
            scalars[read] = numbers[: len(read)]
            ends = np.cumsum([len(read), *(len(r.places) for r in one.readings)])[:-1]
            pieces = np.split(numbers, ends)[1:]
            found = [(r.metric, r.places, p) for r, p in zip(one.readings, pieces, strict=True)]
            self._arrived(one, scalars.tolist(), found)

    def _arrived(
        self, one: Step, scalars: Sequence[float], found: Sequence[tuple[str, Places, Wide]]
    ) -> None:
        if self._open is not None and self._open.step != one.number:
            self._keep(self._row(self._open))
            self._open = None
        if self._open is None:
            self._open = _Open(one.number, one.seconds)
        place, whole = np.array([one.place]), recorded("loss", np.array(scalars))
        for at, (name, given) in enumerate(zip(OF_STEP, one.scalars, strict=True)):
            if given is not None:
                self._open.read.append((name, place, whole[at : at + 1]))
        self._open.read += [(m, places, recorded(m, numbers)) for m, places, numbers in found]

    def _row(self, one: _Open) -> Row:
        read: dict[str, Array] = {}
        for metric, places, numbers in one.read:
            count = self._count(METRICS[metric])
            if count == 1:
                read[metric] = numbers
                continue
            if metric not in read:
                read[metric] = np.full(count, np.nan, dtype=np.float32)
            elif len(read[metric]) < count:  # a site was found in the middle of the row
                missing = np.full(count - len(read[metric]), np.nan, dtype=np.float32)
                read[metric] = np.concatenate([read[metric], missing])
            read[metric][places] = numbers
        return Row(one.step, one.seconds, read)


def recorded(metric: str, numbers: Wide) -> Array:
    """Numbers as float32: what is too large becomes the largest, and what is broken infinite.

    Of shares, NaN is 0 / 0: there was nothing to read.
    """
    if np.abs(numbers).max(initial=0.0) <= LARGEST:  # not so of NaN
        return numbers.astype(np.float32)
    clamped = np.where(np.isfinite(numbers), np.clip(numbers, -LARGEST, LARGEST), numbers)
    if metric not in SHARES:
        clamped[np.isnan(clamped)] = np.inf
    return clamped.astype(np.float32)


def _stacked(numbers: Sequence[Number]) -> Tensor:
    """Numbers as one tensor, where the first of them that is a tensor lies."""
    homes = (one.device for one in numbers if isinstance(one, Tensor))
    home = next(homes, torch.device("cpu"))
    rows = [torch.as_tensor(one, dtype=torch.float64, device=home) for one in numbers]
    return torch.stack([row.reshape(()) for row in rows])
