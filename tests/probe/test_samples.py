"""Batches of equal samples: those that hide the data, and those that are meant."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import steadygrad as sg

Y = torch.arange(32) % 4


def net(*middle: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), *middle, nn.ReLU(), nn.Linear(16, 4))


def codes(model: nn.Module, x: Tensor, y: Tensor = Y) -> list[str]:
    found = sg.check(model, x, loss=lambda m: F.cross_entropy(m(x), y)).findings
    return [one.code for one in found if one.severity > 0]


@pytest.mark.parametrize("middle", [(), (nn.Dropout(0.5),), (nn.BatchNorm1d(16),)])
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_equal_samples_with_different_labels_are_found(
    middle: tuple[nn.Module, ...], scale: float
) -> None:
    x = (scale * torch.arange(6.0)).repeat(32, 1)
    assert codes(net(*middle), x) == ["G608"]


def test_one_sample_repeated_with_its_label_is_a_test_of_the_user() -> None:
    assert codes(net(), torch.arange(6.0).repeat(32, 1), torch.ones_like(Y)) == []


def test_one_sample_that_differs_is_enough() -> None:
    x = torch.zeros(32, 6)
    x[17] = 1.0
    assert codes(net(), x) == []


class Noisy(nn.Module):
    """A generator that draws its own noise and is given a dummy."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = net()

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.layers(x + torch.randn_like(x))
        return scores


class Neighbours(nn.Module):
    """A graph network that holds its graph and is given the same feature for every node."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = net(nn.Dropout(0.1))
        self.register_buffer("graph", torch.rand(32, 32))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.layers(self.graph @ x)
        return scores


@pytest.mark.parametrize("kind", [Noisy, Neighbours])
def test_what_the_model_tells_samples_apart_by_counts(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    assert codes(kind(), torch.ones(32, 6)) == []


class Learned(nn.Module):
    """Latent codes of its own, as generative latent optimization has them."""

    def __init__(self) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.randn(32, 6))
        self.layers = net()

    def forward(self, dummy: Tensor) -> Tensor:
        scores: Tensor = self.layers(self.codes + dummy)
        return scores


def test_inputs_made_inside_the_model_are_left_alone() -> None:
    torch.manual_seed(0)
    assert codes(Learned(), torch.zeros(32, 6)) == []


def test_without_targets_nobody_asks_for_more() -> None:
    report = sg.check(net(), torch.zeros(32, 6))
    assert "G608" not in [one.code for one in report.findings]
