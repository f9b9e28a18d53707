"""Every remedy keeps the contract on every small network, and fits some."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steadygrad.remedies.catalogue import REMEDIES
from steadygrad.remedies.remedy import Remedy
from steadygrad.testing import Case, check_remedy

Make = Callable[[], Case]


def case(model: nn.Module, x: Tensor, y: Tensor, loss: Callable[..., Tensor]) -> Case:
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    return Case(model, x, lambda m: loss(m(x), y), optimizer)


def classes(model: nn.Module, x: Tensor) -> Case:
    return case(model, x, torch.arange(len(x)) % 3, F.cross_entropy)


def mlp(act: Callable[[], nn.Module]) -> Make:
    def make() -> Case:
        model = nn.Sequential(*(nn.Linear(6, 8), act(), nn.Linear(8, 8), act(), nn.Linear(8, 3)))
        return classes(model, 3 * torch.randn(12, 6) + 5)

    return make


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.ModuleList([nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)])
            for _ in range(1)
        )
        self.wide = nn.Conv2d(4, 8, 3, padding=1, groups=2)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for first, second in self.blocks:
            x = x + second(F.relu(first(x)))
        scores: Tensor = self.head(F.relu(self.norm(self.wide(x))).mean((2, 3)))
        return scores


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.encoder(self.embedding(x)).mean(1))
        return scores


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(8, 8) for _ in range(3))
        self.head = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        mixed = F.scaled_dot_product_attention(self.q_proj(x), self.k_proj(x), self.v_proj(x))
        out: Tensor = self.head(mixed.mean(1)).squeeze(1)
        return out


class Memory(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, batch_first=True)
        self.head = nn.Sequential(nn.Linear(6, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.lstm(x)[0][:, -1]).squeeze(1)
        return out


class Edges(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inward, self.out = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.sigmoid(self.inward(x))
        h = h / h.norm(dim=1, keepdim=True) + h.log().exp() + h.sqrt() * h.rsqrt()
        h = (
            h
            + h.softmax(1).log() / 100
            + (h / 100).acos()
            + torch.asin(h / 100)
            + torch.atanh(h / 100)
            + h.std()
        )
        scores: Tensor = self.out(h)
        return scores


def probabilities() -> Case:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3), nn.Softmax(1))
    optimizer = torch.optim.Adam(
        [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 3e-4}], 3e-3
    )
    x, y = torch.randn(12, 6), torch.arange(12) % 3
    return Case(model, x, lambda m: F.cross_entropy(m(x), y), optimizer)


CASES: dict[str, Make] = {
    "relu": mlp(nn.ReLU),
    "tanh": mlp(nn.Tanh),
    "gelu": mlp(nn.GELU),
    "residual": lambda: classes(Residual(), torch.randn(4, 1, 4, 4)),
    "encoder": lambda: classes(Encoder(), torch.randint(10, (6, 3))),
    "attention": lambda: case(
        Attention(), torch.randn(6, 5, 8), 5 + 3 * torch.randn(6), F.mse_loss
    ),
    "memory": lambda: case(
        Memory(), torch.randn(6, 7, 4), torch.arange(6) % 2 * 1.0, F.binary_cross_entropy
    ),
    "probabilities": probabilities,
    "edges": lambda: classes(Edges(), torch.randn(12, 6)),
}
FEW = ("relu", "encoder", "probabilities")
"""Networks for remedies that do not look at the network."""

ELSEWHERE = {
    "rebuild-optimizer",
    "register",
    "follow-requires-grad",
    "train-mode",
    "eps-half",
    "weaker-decay",
    "no-last-relu",
    "linear-output",
    "revive",
    "add-residual",
    "keep-the-graph",
    "straight-through",
    "unit-targets",
    "log-probabilities",
    "same-shape",
    "class-axis",
    "finite-class-weights",
    "float32-weights",
}
"""Remedies of faults that none of these networks has; see the tests beside this one."""


@pytest.mark.parametrize("remedy", REMEDIES, ids=lambda one: one.name)
def test_a_remedy_keeps_the_contract_and_fits_some_network(remedy: Remedy) -> None:
    names = FEW if remedy.kind in ("optimizer", "step", "guard") else tuple(CASES)
    changes = {name: check_remedy(remedy, CASES[name]) for name in names}
    assert any(changes.values()) or remedy.name in ELSEWHERE


def test_names_are_not_given_twice() -> None:
    names = [one.name for one in REMEDIES]
    assert len(names) == len(set(names))
