"""A Subject is what the probes look at: a copy of the model, one traced forward pass, and its loss.

A Probe is a function from a Subject to Readings. Probes leave the subject as they found it: one
that moves weights works on `subject.twin()`, one that needs a fresh pass calls `subject.again()`.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from steadygrad.core.record import Site
from steadygrad.probe.spy import Heard
from steadygrad.probe.trace import Trace, log10_norm
from steadygrad.probe.tree import PLAIN, Tree, tensors

DICTS = (dict, OrderedDict)
UNCOPYABLE = (RuntimeError, TypeError, copy.Error)
"""What deepcopy raises for a model that cannot be copied."""


@dataclass(slots=True)
class Readings:
    """What a probe read: rows of (site, {metric: value}), and facts that are no numbers at a place.

    `blind` says, for each need that could not be read, why: {metric or fact: reason}.
    """

    rows: list[tuple[Site, dict[str, float]]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)  # JSON-like, see core.record.Facts
    blind: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Subject:
    """One traced forward pass of a model, its graph alive.

    `forward` runs a model on the user's inputs and returns what it puts out; `loss` does the same
    and returns the scalar loss, None where the user gave none. `losses` are the calls of loss
    functions that were heard. `outputs` are the floating outputs
    of the model with a graph, the most important first; `loss_value` is the traced loss.
    `optimizer` is the user's, re-made on the parameters of `model`. `rng` are the states of the
    random generators before the forward pass. `pulled` says that a random cotangent at the output
    has reached the inputs finite and non-zero, so that nobody needs to try that again. `opened`
    are the ids of zero-by-design parameters that stand open in this pass.
    """

    model: nn.Module
    forward: Callable[[nn.Module], Tree]
    loss: Callable[[nn.Module], Tensor] | None
    optimizer: Optimizer | None
    trace: Trace
    outputs: list[Tensor]
    loss_value: Tensor | None
    rng: list[Tensor]
    losses: list[Heard] = field(default_factory=list)
    seed: int = 0
    pulled: bool = False
    opened: frozenset[int] = frozenset()
    _norms: dict[int, float] = field(default_factory=dict)

    def again(self, model: nn.Module | None = None) -> Tree:
        """Run the forward pass once more under the same random numbers, untraced."""
        with replayed(self.rng):
            return self.forward(self.model if model is None else model)

    def loss_again(self, model: nn.Module | None = None) -> Tensor:
        """Compute the loss once more under the same random numbers, untraced."""
        if self.loss is None:
            raise ValueError("expected a subject with a loss, got none: give check() a loss")
        with replayed(self.rng):
            return self.loss(self.model if model is None else model)

    def twin(self) -> tuple[nn.Module, Optimizer | None]:
        """Copy model and optimizer once more, so that the copy may be trained and thrown away."""
        return twin(self.model, self.optimizer)

    def log_norm(self, parameter: Tensor) -> float:
        """log10 of a parameter's L2 norm, computed once; see `trace.log10_norm`."""
        if id(parameter) not in self._norms:
            self._norms[id(parameter)] = log10_norm(parameter.detach())
        return self._norms[id(parameter)]

    def noise(self, like: Tensor) -> Tensor:
        """Draw N(0, 1) in the shape of a tensor from a generator of our own."""
        generator = torch.Generator(like.device).manual_seed(self.seed)
        drawn = torch.randn(like.shape, generator=generator, device=like.device)
        return drawn.to(like.dtype)


Probe = Callable[[Subject], Readings]


def twin(model: nn.Module, optimizer: Optimizer | None) -> tuple[nn.Module, Optimizer | None]:
    """Copy a model and its optimizer so that the copied optimizer holds the copied parameters.

    Gradients are not copied. An optimizer's parameters that are not in the model are copied too.
    """
    memo: dict[int, Any] = _copied(model)  # deepcopy's own type
    copied = copy.deepcopy(model, memo)
    return copied, None if optimizer is None else copy.deepcopy(optimizer, memo)


def _copied(model: nn.Module) -> dict[int, Any]:
    """Copies by id of what deepcopy refuses, and of what it takes long over.

    It refuses results that modules keep in plain attributes, and is slow with their many empty
    dicts of hooks.
    """
    copied: dict[int, Any] = {}
    for value in (value for one in model.modules() for value in vars(one).values()):
        if type(value) in DICTS and not value:
            copied[id(value)] = type(value)()
        elif type(value) not in PLAIN:
            copied.update((id(t), t.detach().clone()) for t in tensors(value) if not t.is_leaf)
    return copied


def rng_states() -> list[Tensor]:
    """States of the random generators: the CPU's, then one for each visible CUDA device."""
    states = [torch.get_rng_state()]
    return states + (torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])


def set_rng_states(states: list[Tensor]) -> None:
    """Set the generators' states as `rng_states` gave them."""
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state_all(states[1:])


@contextmanager
def replayed(states: list[Tensor]) -> Iterator[None]:
    """Use these random states inside the block and restore the present ones afterwards."""
    before = rng_states()
    set_rng_states(states)
    try:
        yield
    finally:
        set_rng_states(before)
