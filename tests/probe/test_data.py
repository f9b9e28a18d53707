import pytest
import torch
from torch import Tensor, nn

from steadygrad._check import Setup, trace
from steadygrad.probe.data import data
from steadygrad.probe.subject import rng_states


def read(model: nn.Module, x: Tensor) -> dict:
    subject = trace(model, Setup(lambda m: m(x), None, None, 0), rng_states())
    (row,) = data(subject).facts["inputs"]
    return row


class Divided(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 255


def test_what_enters_the_first_layer_is_read_through_views() -> None:
    x = 100 * torch.randn(16, 2, 4)
    row = read(nn.Sequential(nn.Flatten(), nn.Linear(8, 4)), x)
    assert row["layer"]["module"] == "1"
    assert row["layer"]["rms_in"] == pytest.approx(row["rms"], rel=1e-5)
    assert row["layer"]["raw"]
    assert not row["layer"]["normed"]


def test_what_the_model_scales_itself_is_read_as_scaled() -> None:
    row = read(nn.Sequential(Divided(), nn.Linear(8, 4)), 255 * torch.ones(4, 8))
    assert row["rms"] == pytest.approx(255)
    assert row["layer"]["rms_in"] == pytest.approx(1)
    assert not row["layer"]["raw"]


def test_a_norm_before_or_behind_the_first_layer_is_seen() -> None:
    x = 1000 * torch.randn(16, 8)
    assert read(nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 4)), x)["layer"] == {}
    assert read(nn.Sequential(nn.Linear(8, 4), nn.LayerNorm(4)), x)["layer"]["normed"]


def test_the_largest_feature_is_found_and_empty_ones_are_no_measure() -> None:
    x = torch.randn(64, 8)
    x[:, 3] *= 1e5
    x[:, 4:] = 0
    row = read(nn.Linear(8, 4), x)
    assert row["feature"] == 3
    assert row["median_rms"] == pytest.approx(1, rel=0.5)
    assert row["constant_features"] == 4
