"""Batch norms in evaluation mode that nobody has filled are found, those of a pretraining not."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import steadygrad as sg
from steadygrad.core.report import Report
from steadygrad.remedies.remedy import Scene, Unfit
from steadygrad.remedies.wiring import train_mode

X = torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))
Y = torch.arange(32) % 4


class Deep(nn.Module):
    def __init__(self, depth: int = 10) -> None:
        super().__init__()
        torch.manual_seed(0)
        wide = [3, *[16] * depth]
        self.layers = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU())
                for a, b in pairwise(wide)
            )
        )
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.layers(x).mean((2, 3)))
        return scores


def _loss(model: nn.Module) -> Tensor:
    return nn.functional.cross_entropy(model(X), Y)


def _frozen(model: nn.Module) -> nn.Module:
    for one in model.modules():
        if isinstance(one, nn.BatchNorm2d):
            one.eval()
    return model


def _checked(model: nn.Module) -> Report:
    return sg.check(model, loss=_loss, optimizer=torch.optim.SGD(model.parameters(), 0.05))


def test_norms_that_nobody_has_filled_are_the_cause_of_what_vanishes() -> None:
    report = _checked(_frozen(Deep()))
    assert report.findings[0].code == "G506", str(report)
    assert "layers.0.1" in report.findings[0].where
    assert {one.code for one in report.findings} == {"G506"}
    assert {"G201", "G102"} & {*report.findings[0].symptoms}


def test_norms_of_a_pretraining_and_norms_that_train_are_left_in_peace() -> None:
    assert "G506" in _checked(Deep()).clear
    model = Deep()
    for _ in range(20):
        model(X)
    assert "G506" in _checked(_frozen(model)).clear


def test_training_mode_heals_them() -> None:
    model = _frozen(Deep())
    scene = Scene(model, torch.optim.SGD(model.parameters(), 0.05), _loss)
    assert train_mode.apply(scene).patch == "model.train()"
    assert "G506" in _checked(model).clear
    with pytest.raises(Unfit, match="already"):
        train_mode.apply(scene)
