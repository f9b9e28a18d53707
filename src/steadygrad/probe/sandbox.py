"""A sandbox gives the probes a model to play with and leaves the user's as it was found.

The model is copied. One that cannot be copied, or whose copy would not fit, is used in place:
buffers, gradients, modes, attributes and hooks are noted before and put back after, also after an
exception; so are the values of parameters, unless a copy of them would not fit. The state of the
random generators is put back in both cases.
"""

from __future__ import annotations

import copy
import os
import random
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from steadygrad.probe.subject import rng_states, set_rng_states, twin

Container = dict[Any, Any] | list[Any] | set[Any]  # whatever a user keeps in them


@contextmanager
def unwarned() -> Iterator[None]:
    """Ignore warnings inside the block.

    `warnings.catch_warnings` would have Python forget what it has shown, and show it again.
    """
    ignored = ("ignore", None, Warning, None, 0)
    filters: list[Any] = warnings.filters  # type: ignore[assignment] # a list, whatever its stub
    filters.insert(0, ignored)
    try:
        yield
    finally:
        filters[:] = [one for one in filters if one is not ignored]


@contextmanager
def buffers_put_back(buffers: Iterable[Tensor]) -> Iterator[None]:
    """Put back what running a model again does to its buffers."""
    known = {id(buffer): buffer for buffer in buffers}
    before = [(buffer, buffer.detach().clone()) for buffer in known.values()]
    try:
        yield
    finally:
        for buffer, value in before:  # by `data`: a graph of the user's must not see a new version
            buffer.data.copy_(value)


@contextmanager
def sandbox(
    model: nn.Module, optimizer: Optimizer | None, *, largest_share: float = 0.4
) -> Iterator[tuple[nn.Module, Optimizer | None]]:
    """Yield a copy of model and optimizer, or themselves, to be put back as they were.

    A copy larger than `largest_share` of the free memory is not made (chosen by us: the forward
    pass needs the rest).
    """
    states = rng_states()
    other = random.getstate(), np.random.get_state()
    try:
        fits = _fits(model, largest_share)
        copied = _copy(model, optimizer) if fits else None
        if copied is not None:
            yield copied
        else:
            with _in_place(model, weights=fits):
                yield model, None
    finally:
        set_rng_states(states)
        random.setstate(other[0])
        np.random.set_state(other[1])


def _fits(model: nn.Module, largest_share: float) -> bool:
    held = [t for t in (*model.parameters(), *model.buffers()) if not is_lazy(t)]
    size = sum(t.numel() * t.element_size() for t in held)
    free = _free_memory()
    return free is None or size <= largest_share * free


def _copy(
    model: nn.Module, optimizer: Optimizer | None
) -> tuple[nn.Module, Optimizer | None] | None:
    try:
        return twin(model, optimizer)
    except Exception:  # whatever a user's module raises when it is copied
        return None


def _free_memory() -> int | None:
    """Bytes of memory that are free, None where the system does not say."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


@contextmanager
def _in_place(model: nn.Module, *, weights: bool) -> Iterator[None]:
    """Put every module back as it was; `weights` says whether the values of parameters are kept.

    What stands inside an attribute's own attributes or items is not kept.
    """
    modules = [(one, dict(vars(one)), _containers(one)) for one in model.modules()]
    values = [(t, t.detach().clone()) for t in _held(model, weights)]
    parameters = [(p, p.grad, p.requires_grad) for p in model.parameters()]
    for parameter, _, _ in parameters:
        parameter.grad = None
    try:
        yield
    finally:
        for one, attributes, containers in modules:
            vars(one).clear()
            vars(one).update(attributes)
            for container, items in containers:
                _refill(container, items)
        for tensor, value in values:  # by `data`: a graph of the user's must not see a new version
            tensor.data.copy_(value)
        for parameter, grad, trained in parameters:
            parameter.grad = grad
            parameter.requires_grad_(trained)


def _held(model: nn.Module, weights: bool) -> list[Tensor]:
    """Tensors that a forward pass may write to: parameters if wanted, buffers, attributes."""
    found: list[Tensor] = [*model.parameters()] if weights else []
    found += model.buffers()
    return found + [v for m in model.modules() for v in vars(m).values() if isinstance(v, Tensor)]


def _containers(module: nn.Module) -> list[tuple[Container, Any]]:
    """Return a module's containers, those of hooks and buffers among them, and their items."""
    found = (value for value in vars(module).values() if isinstance(value, (dict, list, set)))
    return [(value, copy.copy(value)) for value in found]


def _refill(container: Container, items: Any) -> None:
    container.clear()
    container.extend(items) if isinstance(container, list) else container.update(items)
