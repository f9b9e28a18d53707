"""A Remedy changes a training that is about to begin, and says what its user would have to write.

It is given a Scene: the model, the optimizer and the loss, held before the first step. What it
cannot do at once it leaves in a Change: what is to be done around each step, and which torch
functions stand in for others.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from torch import Tensor, nn
from torch.optim import Optimizer

Kind = Literal[
    "initialisation",
    "activation",
    "normalisation",
    "architecture",
    "optimizer",
    "step",
    "guard",
    "data",
    "wiring",
]
Loss = Callable[[nn.Module], Tensor]
AtStep = Callable[[Optimizer, int], None]
"""Called with the optimizer and the number of its step, from 0 on."""


class Unfit(Exception):  # noqa: N818 - nothing went wrong: there is nothing here to change
    """A remedy has nothing to change here; the message says what it would need."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A training before its first step.

    `loss` computes the scalar loss of the first batch again, under the script's own random numbers;
    None where it cannot be. `where` are the qualified names that the finding gives, worst first.
    """

    model: nn.Module
    optimizer: Optimizer
    loss: Loss | None = None
    where: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """What a remedy has changed, or is still to change.

    `patch` are the lines to paste once model and optimizer exist. `before` and `after` are called
    around every step. `functions` maps torch functions to those that are called instead. Losses are
    to be multiplied by `unit` before they are compared with those of the unchanged training; with
    `own` they are of another kind, and only to be compared with where they began. `imitates` says
    that the patch is not what was tried, which only comes to the same.
    """

    patch: str
    before: AtStep | None = None
    after: AtStep | None = None
    functions: Mapping[Callable[..., Any], Callable[..., Any]] = field(default_factory=dict)
    unit: float = 1.0
    own: bool = False
    imitates: bool = False


@dataclass(frozen=True, slots=True)
class Remedy:
    """One cure: `cures` are the codes of findings it is for, `size` how much it changes.

    Sizes: 1 a number, 2 a line, 3 several lines, 4 the architecture. `apply` raises Unfit.
    """

    name: str
    kind: Kind
    cures: tuple[str, ...]
    size: int
    explains: str
    apply: Callable[[Scene], Change]


def remedy(
    name: str, kind: Kind, *, cures: tuple[str, ...], size: int
) -> Callable[[Callable[[Scene], Change]], Remedy]:
    """Make a Remedy of a function; its docstring says the paper, what it does, when it fails."""
    if kind not in get_args(Kind):
        raise ValueError(f"a remedy's kind is one of {get_args(Kind)}, got {kind!r}")

    def made(apply: Callable[[Scene], Change]) -> Remedy:
        return Remedy(name, kind, cures, size, inspect.cleandoc(apply.__doc__ or ""), apply)

    return made
