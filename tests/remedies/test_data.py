"""Inputs, targets, and losses that are given scores."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steadygrad.remedies.instead import Instead
from steadygrad.remedies.remedy import Scene, Unfit
from steadygrad.remedies.scale import standardise, standardise_target
from steadygrad.remedies.scores import cross_entropy, with_logits


def scene(model: nn.Module, loss: object) -> Scene:
    return Scene(model, torch.optim.SGD(model.parameters(), 0.1), loss)  # type: ignore[arg-type]


def test_inputs_are_standardised_by_the_first_batch_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False))
    nn.init.eye_(model[0].weight)
    x = torch.randn(50, 3) * torch.tensor([1.0, 100.0, 0.0]) + torch.tensor([5.0, -30.0, 7.0])
    standardise.apply(scene(model, lambda m: m(x).sum()))
    out = model(x).detach()
    assert out.mean(0).abs().max() < 1e-4
    assert torch.allclose(out.std(0, correction=0), torch.tensor([1.0, 1.0, 0.0]), atol=1e-4)
    assert torch.allclose(
        model(x + 1).detach() - out,
        1 / x.std(0, correction=0).where(x.std(0) > 1e-4, torch.tensor(1.0)),
        atol=1e-3,
    )


def test_images_are_standardised_by_channel() -> None:
    model, x = nn.Conv2d(2, 2, 1, bias=False), 40 * torch.rand(5, 2, 4, 4)
    nn.init.eye_(model.weight.data.view(2, 2))
    standardise.apply(scene(model, lambda m: m(x).sum()))
    out = model(x).detach()
    assert torch.allclose(out.std((0, 2, 3), correction=0), torch.ones(2), atol=1e-4)


def test_standard_inputs_and_token_ids_are_left() -> None:
    model, x = nn.Linear(3, 2), torch.randn(500, 3)
    with pytest.raises(Unfit):
        standardise.apply(scene(model, lambda m: m(x).sum()))
    words = nn.Embedding(5, 2)
    with pytest.raises(Unfit):
        standardise.apply(scene(words, lambda m: m(torch.arange(5)).sum()))


@pytest.mark.parametrize(
    ("function", "power"),
    [
        (F.mse_loss, 2),
        (F.l1_loss, 1),
        (lambda p, y: ((p - y) ** 2).mean(), 2),
        (lambda p, y: torch.sub(y, p).square().sum(), 2),
        (lambda p, y: (y - p).abs().mean(), 1),
    ],
)
def test_a_loss_of_standard_targets_is_the_old_loss_in_another_unit(
    function: object, power: int
) -> None:
    assert callable(function)
    model, x, y = nn.Linear(3, 1), torch.randn(40, 3), 1e3 * torch.randn(40, 1) + 5e3
    change = standardise_target.apply(scene(model, lambda m: function(m(x), y)))
    p = model(x)
    with Instead(change.functions):
        new = function(p, y)
    scale = change.unit ** (1 / power)
    mean = float(y.mean())
    old = function(p * scale + mean, y)
    assert float(new.detach()) * change.unit == pytest.approx(float(old.detach()), rel=1e-2)
    assert change.imitates


def test_a_loss_that_is_no_regression_has_no_target_to_scale() -> None:
    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    with pytest.raises(Unfit):
        standardise_target.apply(scene(model, lambda m: F.cross_entropy(m(x), torch.arange(4) % 2)))


class Squashed(nn.Module):
    def __init__(self, out: int) -> None:
        super().__init__()
        self.layer = nn.Linear(3, out)

    def forward(self, x: Tensor) -> Tensor:
        z = self.layer(x)
        return torch.sigmoid(z).squeeze(1) if z.shape[1] == 1 else z.softmax(-1)


def test_saturated_sigmoids_have_a_gradient_again() -> None:
    model, x, y = Squashed(1), 1e4 * torch.ones(4, 3), torch.zeros(4)
    nn.init.ones_(model.layer.weight)

    def loss(m: nn.Module) -> Tensor:
        return F.binary_cross_entropy(m(x), y)

    change = with_logits.apply(scene(model, loss))
    with Instead(change.functions):
        value = loss(model)
    expected = F.binary_cross_entropy_with_logits(model.layer(x).squeeze(1), y)
    assert torch.equal(value, expected)
    value.backward()
    assert bool(model.layer.weight.grad.any())


@pytest.mark.parametrize("view", [False, True])
def test_a_second_softmax_is_undone(view: bool) -> None:
    model, x, y = Squashed(5), torch.randn(4, 3), torch.arange(4)

    def loss(m: nn.Module) -> Tensor:
        p = m(x)
        return F.cross_entropy(p.view(2, 2, 5).flatten(0, 1) if view else p, y)

    change = cross_entropy.apply(scene(model, loss))
    with Instead(change.functions):
        value = loss(model)
    assert torch.allclose(value, F.cross_entropy(model.layer(x), y))
    assert not torch.allclose(value, loss(model))


def test_attention_s_softmax_is_not_the_loss_s() -> None:
    model, x = Squashed(5), torch.randn(4, 3)

    def loss(m: nn.Module) -> Tensor:
        return F.cross_entropy(m(x) * 3, torch.arange(4))

    with pytest.raises(Unfit):
        cross_entropy.apply(scene(model, loss))
