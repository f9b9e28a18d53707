"""What a constant prediction costs is known from the targets, or said to be unknown."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import steadygrad as sg

Loss = Callable[[Tensor, Tensor], Tensor]


def facts_after(loss: Loss, target: Callable[[int], Tensor], width: int = 4) -> dict[str, Any]:
    """Facts of twenty steps with a loss of scores [16, width] and a target."""
    torch.manual_seed(0)
    model = nn.Linear(8, width)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with sg.watch(model, optimizer) as watch:
        for step in range(20):
            optimizer.zero_grad()
            loss(model(torch.randn(16, 8)), target(step)).backward()
            optimizer.step()
    return dict(watch.record.facts)


def even(_step: int) -> Tensor:
    """Each of four classes equally often."""
    return torch.arange(16) % 4


@pytest.mark.parametrize(
    ("loss", "cost"),
    [
        (F.cross_entropy, math.log(4)),
        (nn.CrossEntropyLoss(), math.log(4)),
        (lambda out, y: F.cross_entropy(out, y) / 2, math.log(2)),
        (lambda out, y: F.nll_loss(out.log_softmax(1), y), math.log(4)),
        (nn.CrossEntropyLoss(reduction="sum"), 16 * math.log(4)),
    ],
)
def test_labels_cost_their_entropy(loss: Loss, cost: float) -> None:
    constant = facts_after(loss, even)["constant"]
    assert constant["loss"] == pytest.approx(cost, rel=1e-5)
    assert constant["classes"] == 4


def test_ignored_labels_do_not_count() -> None:
    def target(_step: int) -> Tensor:
        return torch.where(torch.arange(16) < 8, torch.arange(16) % 2, -100)

    assert facts_after(F.cross_entropy, target)["constant"]["loss"] == pytest.approx(math.log(2))


def test_squares_cost_the_variance() -> None:
    def target(_step: int) -> Tensor:
        return torch.tensor([1.0, -1.0]).repeat(8)[:, None]

    assert facts_after(F.mse_loss, target, 1)["constant"]["loss"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    "loss",
    [
        lambda out, y: F.cross_entropy(out, y) + 0.1 * out.square().mean(),
        lambda out, y: F.cross_entropy(out, y, weight=torch.arange(1.0, 5.0)),
        lambda out, y: F.cross_entropy(out, y, reduction="none").exp().mean(),
    ],
)
def test_what_a_constant_costs_may_be_unknown(loss: Loss) -> None:
    assert facts_after(loss, even)["constant"] == {}


def test_targets_that_grow_say_nothing() -> None:
    def target(step: int) -> Tensor:
        return step * torch.tensor([1.0, -1.0]).repeat(8)[:, None]

    assert facts_after(F.mse_loss, target, 1)["constant"] == {}
