"""Run a subject's pass once more while somebody listens; its buffers are put aside meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import nn

from steadygrad.probe.sandbox import unwarned
from steadygrad.probe.subject import Subject
from steadygrad.probe.tree import Tree


def rerun(subject: Subject, listener: AbstractContextManager[Any]) -> Tree:
    """Return what one more pass gives, run under a listener and the same random numbers.

    Modules write to clones of their buffers: the graph of the first pass holds the originals. What
    the pass warns of has been said the first time.
    """
    with _buffers_aside(subject.model), unwarned(), listener:
        return subject.again()


@contextmanager
def calling(model: nn.Module) -> Iterator[list[str]]:
    """Keep the names of the running module calls in a list, the innermost last."""
    running: list[str] = []

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: running.append(name)

    def leave(*_: object) -> None:
        running.pop()

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(name), prepend=True))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield running
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _buffers_aside(model: nn.Module) -> Iterator[None]:
    originals = [(module, dict(module._buffers)) for module in model.modules()]
    for module, buffers in originals:
        module._buffers.update({k: b if b is None else b.clone() for k, b in buffers.items()})
    try:
        yield
    finally:
        for module, buffers in originals:
            module._buffers.update(buffers)
