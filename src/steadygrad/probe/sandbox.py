"""A sandbox gives the probes a model to play with and leaves the user's as it was found.

The model is copied. One that cannot be copied, or whose copy would not fit, is used in place:
parameters, buffers, gradients, modes, plain attributes and hooks are noted before and put back
after, also after an exception. The state of the random generators is put back in both cases.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from steadygrad.probe.subject import rng_states, set_rng_states, twin

PLAIN = (bool, int, float, str, bytes, type(None))


@contextmanager
def sandbox(
    model: nn.Module, optimizer: Optimizer | None, *, largest_share: float = 0.4
) -> Iterator[tuple[nn.Module, Optimizer | None]]:
    """Yield a copy of model and optimizer, or themselves, to be put back as they were.

    A copy larger than `largest_share` of the free memory is not made (chosen by us: the forward
    pass needs the rest).
    """
    states = rng_states()
    other = random.getstate(), np.random.get_state()  # noqa: NPY002 - the user's, not our draw
    try:
        copied = _copy(model, optimizer, largest_share)
        if copied is not None:
            yield copied
        else:
            with _in_place(model):
                yield model, None
    finally:
        set_rng_states(states)
        random.setstate(other[0])
        np.random.set_state(other[1])  # noqa: NPY002 - as above


def _copy(
    model: nn.Module, optimizer: Optimizer | None, largest_share: float
) -> tuple[nn.Module, Optimizer | None] | None:
    size = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    free = _free_memory()
    if free is not None and size > largest_share * free:
        return None
    try:
        return twin(model, optimizer)
    except Exception:  # noqa: BLE001 - whatever a user's module refuses to copy
        return None


def _free_memory() -> int | None:
    """Bytes of memory that are free, None where the system does not say."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


@contextmanager
def _in_place(model: nn.Module) -> Iterator[None]:
    tensors = [(t, t.detach().clone(), t.grad if t.is_leaf else None) for t in model.buffers()]
    tensors += [(p, None, p.grad) for p in model.parameters()]  # `opened` puts back what it opens
    attributes = [(one, _plain(one), dict(one._buffers)) for one in model.modules()]
    for parameter in model.parameters():
        parameter.grad = None
    try:
        yield
    finally:
        for one, values, buffers in attributes:
            one.__dict__.update(values)
            one._buffers.update(buffers)
        with torch.no_grad():
            for tensor, value, grad in tensors:
                _restore(tensor, value, grad)


def _restore(tensor: Tensor, value: Tensor | None, grad: Tensor | None) -> None:
    if value is not None and not torch.equal(tensor, value):
        tensor.copy_(value)
    if tensor.is_leaf:
        tensor.grad = grad


def _plain(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if isinstance(value, PLAIN)}
