"""The last finite norms: what adaptive policies learn from."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator


class Window:
    """The last `size` numbers that were finite; others never enter."""

    def __init__(self, size: int) -> None:
        self._kept: deque[float] = deque(maxlen=size)

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[float]:
        return iter(self._kept)

    def add(self, number: float) -> None:
        """Keep a number if it is finite."""
        if math.isfinite(number):
            self._kept.append(number)

    def replace(self, numbers: Iterable[float]) -> None:
        """Keep these instead."""
        self._kept.clear()
        self._kept.extend(numbers)
