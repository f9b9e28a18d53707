"""A policy decides from the gradients at hand and what it has seen: a contract of four calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import nn
from torch.optim import Optimizer

from steadygrad.guards.gradients import Decision, Gradients

State = dict[str, Any]  # numbers, strings, lists and tensors, as torch.save writes them


@dataclass(frozen=True, slots=True)
class Event:
    """One step: the norm of its gradients, and what was done.

    `norm` is before and `norm_after` after clipping; inf or NaN where the gradients were. `by` are
    the policies that clipped or skipped, "scaler" where the GradScaler did. `suspects` are the
    parameters with the largest share of the squared norm, (name, share); of a gradient that is not
    finite, the first that is not, with a share of NaN. `overflowed` says that the gradients were
    finite while their sum of squares was beyond float32.
    """

    step: int
    norm: float
    norm_after: float
    threshold: float = float("inf")
    clipped: bool = False
    skipped: bool = False
    by: tuple[str, ...] = ()
    suspects: tuple[tuple[str, float], ...] = ()
    overflowed: bool = False
    norms: np.ndarray[Any, Any] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a policy may hold on to: the optimizer that is guarded, and the model where given."""

    optimizer: Optimizer
    model: nn.Module | None = None


@runtime_checkable
class Policy(Protocol):
    """A rule for gradients. `name` is what the history calls it.

    Before a step `decide` sees the gradients and must not change them. After it `observe` gets the
    event, in order; on a device some steps late, as nothing waits there. Observed norms may be
    infinite or NaN, and must not enter a statistic then. The state is what a resumed run needs to
    decide as if it had never stopped.
    """

    name: str

    def decide(self, gradients: Gradients) -> Decision:
        """Say what to do with the gradients."""

    def observe(self, event: Event) -> None:
        """Take note of a step that has been made or skipped."""

    def state_dict(self) -> State:
        """Return what has been learned."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what has been learned."""


@runtime_checkable
class Attached(Protocol):
    """A policy that acts on more than gradients; told what is guarded before the first step."""

    def attach(self, surroundings: Surroundings) -> None:
        """Take hold of what is guarded."""


class Stateless:
    """What a policy does that needs no past: nothing to learn, nothing to save."""

    def observe(self, event: Event) -> None:
        """Learn nothing."""

    def state_dict(self) -> State:
        """Return nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up nothing."""
