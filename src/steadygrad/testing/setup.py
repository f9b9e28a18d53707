"""Join model, data, loss and optimizer to a Case, as a training script would."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 as everybody writes it
from torch.optim import SGD, Adam, Optimizer

from steadygrad.probe.tree import Tree
from steadygrad.testing.case import Case
from steadygrad.testing.data import digits, images, sequences, table

Compare = Callable[[Tensor, Tensor], Tensor]
Step = Callable[[list[nn.Parameter]], Optimizer]


def adam(lr: float = 1e-3, eps: float = 1e-8) -> Step:
    """Make Adam over all trainable parameters."""
    return lambda parameters: Adam(parameters, lr=lr, eps=eps)


def sgd(lr: float, momentum: float = 0.0) -> Step:
    """Make SGD over all trainable parameters."""
    return lambda parameters: SGD(parameters, lr=lr, momentum=momentum)


def supervised(
    model: nn.Module,
    inputs: Tree,
    target: Tensor,
    compare: Compare = F.cross_entropy,
    step: Step | None = None,
) -> Case:
    """Compare the model's output with a target."""

    def loss(network: nn.Module) -> Tensor:
        given = inputs if isinstance(inputs, tuple) else (inputs,)
        return compare(network(*given), target)

    return Case(model, inputs, loss, optimizer_of(model, step))


def optimizer_of(model: nn.Module, step: Step | None) -> Optimizer | None:
    """Make the optimizer of the model's trainable parameters; None when there is no step."""
    if step is None:
        return None
    return step([p for p in model.parameters() if p.requires_grad])


def on_digits(
    model: nn.Module, compare: Compare = F.cross_entropy, step: Step | None = None
) -> Case:
    """Classify standardized digits, 64 of them as vectors."""
    x, y = digits()
    return supervised(model, x, y, compare, step)


def on_images(
    model: nn.Module, compare: Compare = F.cross_entropy, step: Step | None = None
) -> Case:
    """Classify digits, 32 of them as images [1, 16, 16]."""
    x, y = images()
    return supervised(model, x, y, compare, step)


def on_sequences(model: nn.Module, length: int, step: Step | None = None) -> Case:
    """Remember the sign of a cue at the first step; every call of the loss draws a new batch."""

    def loss(network: nn.Module) -> Tensor:
        x, y = sequences(length=length)
        return F.cross_entropy(network(x), y)

    return Case(model, sequences(length=length)[0], loss, optimizer_of(model, step))


def on_table(model: nn.Module, compare: Compare = F.mse_loss, step: Step | None = None) -> Case:
    """Regress a standardized target on a standardized table."""
    x, y = table()
    return supervised(model, x, y, compare, step)


def without_loss(case: Case) -> Case:
    """Keep of a case the model and its inputs only."""
    return Case(case.model, case.inputs)


def constant(value: float) -> Callable[[Tensor], object]:
    """Fill a parameter with one value."""
    return partial(torch.nn.init.constant_, val=value)
