"""All the random generators that a user's forward pass may draw from, as one state."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Generators:
    """States of torch's, Python's and NumPy's global generators; None for one that was not read."""

    torch: list[Tensor]
    python: Any = None  # opaque, as random.getstate() gives it
    numpy: Any = None  # opaque, as numpy.random.get_state() gives it


def generators() -> Generators:
    """Read the states of all generators."""
    return Generators(torchs_generators().torch, random.getstate(), np.random.get_state())


def torchs_generators() -> Generators:
    """Read torch's own: a fortieth of the time that all take."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_initialized():  # a script that uses no device, or forks first, is left alone
        states += torch.cuda.get_rng_state_all()
    return Generators(states)


def set_generators(states: Generators) -> None:
    """Set all generators."""
    torch.set_rng_state(states.torch[0])
    if len(states.torch) > 1:
        torch.cuda.set_rng_state_all(states.torch[1:])
    if states.python is not None:
        random.setstate(states.python)
    if states.numpy is not None:
        np.random.set_state(states.numpy)


def seed_all(seed: int) -> None:
    """Seed torch, Python and NumPy."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def same(one: Generators | None, other: Generators) -> bool:
    """Whether two states are equal, so that one of them need not be kept."""
    if one is None or len(one.torch) != len(other.torch):
        return False
    return (
        all(torch.equal(a, b) for a, b in zip(one.torch, other.torch, strict=True))
        and one.python == other.python
        and one.numpy[2:] == other.numpy[2:]
        and bool(np.array_equal(one.numpy[1], other.numpy[1]))
    )


@contextmanager
def kept() -> Iterator[None]:
    """Put all generators back at the end of the block."""
    before = generators()
    try:
        yield
    finally:
        set_generators(before)
