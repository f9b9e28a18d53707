"""What a launcher hands to `check`, and the two ways in which it can fail."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.optim import Optimizer

from steadygrad.core.record import Facts
from steadygrad.probe.tree import Tree


class CannotLook(Exception):  # noqa: N818 - it says what we cannot do; nothing went wrong
    """The target cannot be looked at; the message says what was expected, what came, what to do."""


class UsersError(Exception):
    """The user's code raised; the cause is the user's exception."""


@dataclass(frozen=True, slots=True)
class Captured:
    """A model with what is needed to run it: a loss that can be computed again, or inputs.

    `loss` takes the model, or a copy of it, and computes the scalar under the script's own random
    numbers. `facts` are JSON-like; `blind` says what could not be captured, and why.
    """

    model: nn.Module
    loss: Callable[[nn.Module], Tensor] | None = None
    inputs: Tree = None
    optimizer: Optimizer | None = None
    facts: Facts = field(default_factory=dict)
    blind: Mapping[str, str] = field(default_factory=dict)
