"""What is learned: scikit-learn's digits by a network of ours, or a Setup of the user's own."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from functools import cache
from itertools import chain

import torch
from torch import Tensor, nn

from steadygrad._cure import Setup
from steadygrad.lab.arena.contestants import (
    activation_of,
    architecture_of,
    load,
    norm_of,
    remedies_of_model,
)
from steadygrad.lab.arena.grid import DIGITS, Cell
from steadygrad.lab.nets import digits
from steadygrad.remedies.applied import BY_NAME, Applied
from steadygrad.remedies.remedy import Scene

BATCH = 64


def made(task: str, cell: Cell, seed: int) -> tuple[Setup, Applied | None]:
    """Make a training of a cell, but for its initialisation and its optimizers.

    The batches depend on the seed alone, so that all contestants of one seed see the same. What has
    been applied to a model of the user's own comes beside it, as it may act while it is trained.
    """
    return (_digits(cell, seed), None) if task == DIGITS else _users(task, cell)


def baseline(task: str) -> float:
    """Return the loss of the best constant prediction; NaN where it is not known."""
    return math.log(10) if task == DIGITS else math.nan  # ten classes, equally frequent to 2 %


def takes(task: str) -> set[str]:
    """Return which of depth and width a task takes."""
    if task == DIGITS:
        return {"depth", "width"}
    return set(inspect.signature(load(task)).parameters) & {"depth", "width"}


# --- Digits ---------------------------------------------------------------------------------------

_loaded = cache(digits)


def _digits(cell: Cell, seed: int) -> Setup:
    one = cell.contestant
    build = architecture_of(one.architecture)
    activation, norm = activation_of(one.activation), norm_of(one.norm)
    model = build(cell.setting.depth, cell.setting.width, activation, norm)
    return Setup(model, _placeholder(model), _entropy, _drawn(seed))


def _entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    images, labels = batch
    return nn.functional.cross_entropy(model(images), labels)


def _drawn(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    images, labels = _loaded()
    generator = torch.Generator().manual_seed(seed)
    while True:
        chosen = torch.randint(len(images), (BATCH,), generator=generator)
        yield images[chosen], labels[chosen]


def _placeholder(model: nn.Module) -> torch.optim.Optimizer:
    """Return an optimizer that never steps: remedies want one to add parameters to."""
    return torch.optim.SGD(model.parameters(), 0.0)


# --- The user's own -------------------------------------------------------------------------------


def _users(task: str, cell: Cell) -> tuple[Setup, Applied | None]:
    """Call setup(), with depth and width if it takes them; put activation and norm in place."""
    sizes = {"depth": cell.setting.depth, "width": cell.setting.width}
    found = load(task)(**{name: size for name, size in sizes.items() if size})
    if not isinstance(found, Setup):
        raise TypeError(
            f"expected {task} to return a steadygrad.Setup(model, optimizer, loss, batches), got "
            f"{type(found).__name__}"
        )
    names = remedies_of_model(cell.contestant.activation, cell.contestant.norm)
    if not names:
        return found, None
    first, found = with_first(found)
    scene = Scene(found.model, found.optimizer, lambda model: found.loss(model, first))
    return found, Applied([BY_NAME[name] for name in names], scene)


def with_first(setup: Setup) -> tuple[object, Setup]:
    """Return the first batch, and the setup in which it still comes first."""
    batches = iter(setup.batches)
    first = next(batches)
    if batches is setup.batches:  # an iterator, which has moved on
        setup = Setup(setup.model, setup.optimizer, setup.loss, chain([first], batches))
    return first, setup
