"""Numbers on their way from a device to the host, read when they have arrived."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

Row = np.ndarray[Any, np.dtype[np.float64]]


class Mailbox:
    """Copies of 1-d tensors, each into memory of its own that the device can write to at any time.

    A copy to pageable memory that is read at once reads nonsense; so each has a CUDA event, and is
    handed out when that has passed. Without CUDA a copy is made at once.
    """

    def __init__(self) -> None:
        self._posted: deque[tuple[int, Tensor, Any]] = deque()  # torch.cuda.Event, or None

    def post(self, step: int, numbers: Tensor) -> None:
        """Send the numbers of a step on their way."""
        if numbers.device.type != "cuda":
            self._posted.append((step, numbers.cpu(), None))
            return
        host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
        host.copy_(numbers, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(numbers.device))
        self._posted.append((step, host, event))

    def arrived(self, *, wait: bool = False) -> Iterator[tuple[int, Row]]:
        """Hand out what has arrived, in order; all of it when one may wait."""
        while self._posted:
            step, host, event = self._posted[0]
            if event is not None and not event.query():
                if not wait:
                    return
                event.synchronize()
            self._posted.popleft()
            yield step, host.numpy()
