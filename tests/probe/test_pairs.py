"""Losses of n predictions and n targets that make n * n pairs, and those that are meant to."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import steadygrad as sg

Loss = Callable[[Tensor, Tensor], Tensor]

PAIRS: dict[str, Loss] = {
    "mse_loss": F.mse_loss,
    "l1_loss": F.l1_loss,
    "smooth_l1_loss": F.smooth_l1_loss,
    "huber_loss": F.huber_loss,
    "poisson_nll_loss": lambda p, y: F.poisson_nll_loss(p, y.abs()),
    "root": lambda p, y: F.mse_loss(p, y).sqrt(),
    "unreduced": lambda p, y: F.mse_loss(p, y, reduction="none").mean(),
    "by hand": lambda p, y: ((p - y) ** 2).mean(),
    "the other way": lambda p, y: (y - p).abs().sum(),
    "weighted": lambda p, y: ((p - y) ** 2 * (1 + y.abs())).mean(),
    "policy": lambda p, y: -(F.logsigmoid(p) * y).mean(),
    "flat prediction": lambda p, y: F.mse_loss(p[:, 0], y[:, None]),
    "as modules": lambda p, y: nn.MSELoss()(p, y),
}
FIT: dict[str, Loss] = {
    "same shape": lambda p, y: F.mse_loss(p[:, 0], y),
    "one target": lambda p, y: F.mse_loss(p, y.mean()),
    "equal targets": lambda p, y: F.mse_loss(p, torch.ones_like(y)),
    "columns": lambda p, y: ((p - y[:8]) ** 2).mean(),
    "quantiles": lambda p, y: F.smooth_l1_loss(p, y[None], reduction="none").mean(),
    "nearest": lambda p, y: ((p - y) ** 2).min(1).values.mean(),
    "kernel": lambda p, y: -torch.exp(-((p - y) ** 2)).mean(),
    "distances": lambda p, y: (p - p[:, 0]).abs().mean() + F.mse_loss(p[:, 0], y),
}


def codes(loss: Loss) -> list[str]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))
    x = torch.randn(32, 6)
    y = x[:, 0] + x[:, 1]
    found = sg.check(model, x, loss=lambda m: loss(m(x), y)).findings
    return [one.code for one in found if one.severity > 0]


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("name", PAIRS)
def test_predictions_compared_with_every_target_are_found(name: str) -> None:
    assert codes(PAIRS[name]) == ["G607"]


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("name", FIT)
def test_losses_that_know_their_targets_are_left_alone(name: str) -> None:
    assert codes(FIT[name]) == []


def test_a_map_with_a_channel_against_maps_without_is_found() -> None:
    torch.manual_seed(0)
    model, x = nn.Conv2d(3, 1, 3, padding=1), torch.randn(8, 3, 6, 6)
    report = sg.check(model, x, loss=lambda m: ((m(x) - x[:, 0]) ** 2).mean())
    assert [one.code for one in report.findings] == ["G607"]
    assert report.findings[0].evidence["pairs"] == 8 * 8 * 36
