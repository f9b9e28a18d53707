"""Healthy networks on which an earlier version spoke: each false alarm stays mended."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

import steadygrad as sg
from steadygrad.core.finding import Severity


class Gated(nn.Module):
    """x + alpha * branch(x), with alpha zero at the start (SkipInit)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        for layer in (self.branch[0], self.branch[2]):
            nn.init.kaiming_normal_(layer.weight)
        self.alpha = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.alpha * self.branch(x)


class Spectrum(nn.Module):
    """A complex-valued layer between two real ones."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(16, 16), nn.Linear(16, 4)
        self.filter = nn.Parameter(torch.randn(9, dtype=torch.cfloat) / math.sqrt(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.after(torch.fft.irfft(torch.fft.rfft(self.before(x)) * self.filter, n=16))


class Recommender(nn.Module):
    """Small embeddings before default layers, so that default biases exceed the signal."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(50, 8), nn.Embedding(40, 8)
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=0.01)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
        self.out = nn.Linear(16, 1)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return self.out(self.mlp(torch.cat([self.user(user), self.item(item)], -1)))


def worst(model: nn.Module, *inputs: Tensor) -> Severity:
    return sg.check(model, inputs).worst


def test_branches_behind_a_shut_gate_do_not_grow() -> None:
    torch.manual_seed(0)
    gated = nn.Sequential(*(Gated(32) for _ in range(40)), nn.Linear(32, 10))
    assert worst(gated, torch.randn(64, 32)) is Severity.note


def test_the_same_branches_with_the_gate_open_do() -> None:
    torch.manual_seed(0)
    gated = nn.Sequential(*(Gated(32) for _ in range(40)), nn.Linear(32, 10))
    for block in gated[:-1]:
        nn.init.ones_(block.alpha)
    (found,) = sg.check(gated, torch.randn(64, 32)).findings
    assert found.name == "growing-residual"


def test_default_biases_behind_small_embeddings_are_left_in_peace() -> None:
    torch.manual_seed(0)
    inputs = torch.randint(50, (64,)), torch.randint(40, (64,))
    assert worst(Recommender(), *inputs) is Severity.note


def test_a_complex_layer_is_looked_at() -> None:
    torch.manual_seed(0)
    assert worst(Spectrum(), torch.randn(32, 16)) is Severity.note
