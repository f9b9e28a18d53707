"""Heads begin small."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from steadygrad.remedies.head import small_head
from steadygrad.remedies.remedy import Scene, Unfit


class Twofold(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 8)
        self.mean, self.log_variance = nn.Linear(8, 2), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.body(x))
        return self.mean(x), self.log_variance(x)


def _scene(factor: float, where: tuple[str, ...] = ()) -> tuple[Scene, Tensor]:
    torch.manual_seed(0)
    model, x = Twofold(), torch.randn(64, 4)
    with torch.no_grad():
        for p in (*model.mean.parameters(), *model.log_variance.parameters()):
            p.mul_(factor)

    def loss(net: nn.Module) -> Tensor:
        mean, log_variance = net(x)
        nll: Tensor = ((mean - x[:, :2]).square() / log_variance.exp() + log_variance).mean()
        return nll

    return Scene(model, torch.optim.SGD(model.parameters()), loss, where), x


def test_the_layer_that_is_pointed_at_begins_at_one() -> None:
    scene, x = _scene(400.0, ("log_variance", "loss"))
    model = scene.model
    before = model(x)

    small_head.apply(scene)

    assert torch.equal(model(x)[0], before[0])
    assert float(model(x)[1].detach().square().mean().sqrt()) == pytest.approx(1.0, rel=1e-2)


def test_without_a_place_every_large_head_does_and_the_body_stays() -> None:
    scene, x = _scene(400.0)
    body = scene.model.get_parameter("body.weight").clone()

    small_head.apply(scene)

    for out in scene.model(x):
        assert float(out.detach().square().mean().sqrt()) == pytest.approx(1.0, rel=1e-2)
    assert torch.equal(scene.model.get_parameter("body.weight"), body)


def test_a_small_head_is_left() -> None:
    scene, _ = _scene(1.0)
    with pytest.raises(Unfit, match="more than 1"):
        small_head.apply(scene)
