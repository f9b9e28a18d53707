"""Puts the readings of optimizers that step in turn together into rows.

A round is a step of each optimizer at most; it ends when one of them steps again. Where numbers lie
on a device they are sent on their way, and come to their row when they have arrived.
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
from steadygrad.core.steps import METRICS, Array, Row
from steadygrad.guards.mailbox import Mailbox
from steadygrad.taps.catalogue import Places
from steadygrad.taps.number import Number

LARGEST = float(np.finfo(np.float32).max)
SHARES = ("moved", "dead", "saturated")
Wide = NDArray[np.float64]
Numbers = Tensor | Sequence[Number]  # a tensor has one axis


@dataclass(frozen=True, slots=True)
class Reading:
    """Numbers of one metric, and the places of the sites at which they were read."""

    metric: str
    places: Places
    numbers: Numbers


@dataclass(slots=True)
class _Open:
    """A row that may still get readings."""

    step: int
    seconds: float
    read: list[tuple[str, Places, Array]] = field(default_factory=list)


Parcel = tuple[float, list[tuple[str, Places]]]  # seconds, and what the numbers are


class Rounds:
    """Rows in the making. `keep` gets each when it is complete, in order."""

    def __init__(self, keep: Callable[[Row], None], count: Callable[[Role], int]) -> None:
        self._keep, self._count = keep, count
        self._open: _Open | None = None
        self._mailbox = Mailbox()
        self._parcels: deque[Parcel] = deque()

    def add(self, step: int, seconds: float, readings: Sequence[Reading]) -> None:
        """Add readings of a step."""
        device = _device_of(readings)
        if device is None and not self._parcels:
            found = [
                (r.metric, r.places, recorded(r.metric, _on_host(r.numbers))) for r in readings
            ]
            self._arrived(step, seconds, found)
            return
        home = device or torch.device("cpu")
        self._mailbox.post(step, torch.cat([_on(home, one.numbers) for one in readings]))
        self._parcels.append((seconds, [(one.metric, one.places) for one in readings]))
        self.deliver()

    def deliver(self, *, wait: bool = False) -> None:
        """Take in what has come from a device; all of it when one may wait."""
        for step, numbers in self._mailbox.arrived(wait=wait):
            seconds, parts = self._parcels.popleft()
            ends = np.cumsum([len(places) for _, places in parts])[:-1]
            pieces = np.split(numbers, ends)
            found = [(m, p, recorded(m, n)) for (m, p), n in zip(parts, pieces, strict=True)]
            self._arrived(step, seconds, found)

    def peek(self) -> Row | None:
        """The last row, as it is now."""
        return None if self._open is None else self._row(self._open)

    def close(self) -> None:
        """Wait for everything, and hand out the last row."""
        self.deliver(wait=True)
        if self._open is not None:
            self._keep(self._row(self._open))
            self._open = None

    def _arrived(self, step: int, seconds: float, found: list[tuple[str, Places, Array]]) -> None:
        if self._open is not None and self._open.step != step:
            self._keep(self._row(self._open))
            self._open = None
        if self._open is None:
            self._open = _Open(step, seconds)
        self._open.read += found

    def _row(self, one: _Open) -> Row:
        read: dict[str, Array] = {}
        for metric, places, numbers in one.read:
            if metric not in read:
                count = self._count(METRICS[metric])
                read[metric] = np.full(count, np.nan, dtype=np.float32)
            read[metric][places] = numbers
        return Row(one.step, one.seconds, read)


def _device_of(readings: Sequence[Reading]) -> torch.device | None:
    """The device on which some of the numbers lie; None where all are on the host."""
    for one in readings:
        some = [one.numbers] if isinstance(one.numbers, Tensor) else one.numbers
        for number in some:
            if isinstance(number, Tensor) and number.device.type != "cpu":
                return number.device
    return None


def _on_host(numbers: Numbers) -> Wide:
    if isinstance(numbers, Tensor):
        return np.asarray(numbers.double().numpy())
    return np.array([float(one) for one in numbers])


def recorded(metric: str, numbers: Wide) -> Array:
    """Numbers as float32: what is too large becomes the largest, and what is broken infinite.

    Of shares, NaN is 0 / 0: there was nothing to read.
    """
    finite = np.isfinite(numbers)
    clamped = np.where(finite, np.clip(numbers, -LARGEST, LARGEST), numbers)
    if metric not in SHARES:
        clamped[np.isnan(clamped)] = np.inf
    return clamped.astype(np.float32)


def _on(device: torch.device, numbers: Numbers) -> Tensor:
    if isinstance(numbers, Tensor):
        return numbers.to(device, torch.float64, non_blocking=True)
    rows = [torch.as_tensor(one, dtype=torch.float64, device=device) for one in numbers]
    return torch.stack([row.reshape(()) for row in rows])
