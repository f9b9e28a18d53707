"""Which activations are swapped, and which are not."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steadygrad.remedies.activation import (
    elu,
    gelu,
    leaky_relu,
    prelu,
    selu,
    tailored_relu,
    tailored_slope,
)
from steadygrad.remedies.ends import linear_output, no_last_relu
from steadygrad.remedies.instead import Instead
from steadygrad.remedies.remedy import Scene, Unfit
from steadygrad.testing.nets import Chain


def scene(model: nn.Module, x: Tensor, *, known: bool = True) -> Scene:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def loss(m: nn.Module) -> Tensor:
        out: Tensor = m(x).square().mean()
        return out

    return Scene(model, optimizer, loss if known else None)


class Written(nn.Module):
    """Activations as functions; `between` and `last` are what stands there."""

    def __init__(self, between: Callable[[Tensor], Tensor], last: Callable[[Tensor], Tensor]):
        super().__init__()
        self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 2)
        self.between, self.last = between, last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.two(self.between(self.one(x))))


def relu_in_place(x: Tensor) -> Tensor:
    return F.relu(x, inplace=True)


@pytest.mark.parametrize("between", [F.relu, torch.relu, Tensor.relu, Tensor.relu_, relu_in_place])
def test_functions_between_layers_are_mapped(between: Callable[[Tensor], Tensor]) -> None:
    model, x = Written(between, torch.sigmoid), torch.randn(3, 4)
    change = elu.apply(scene(model, x))
    with Instead(change.functions):
        out = model(x)
    assert torch.equal(out, torch.sigmoid(model.two(F.elu(model.one(x)))))
    assert change.imitates


def test_a_function_that_works_in_place_is_replaced_in_place() -> None:
    class InPlace(Written):
        def forward(self, x: Tensor) -> Tensor:
            h = self.one(x)
            h.relu_()
            out: Tensor = self.two(h)
            return out

    model, x = InPlace(F.relu, F.relu), torch.randn(3, 4)
    change = elu.apply(scene(model, x))
    with Instead(change.functions):
        out = model(x)
    assert torch.equal(out, model.two(F.elu(model.one(x))))
    out.sum().backward()


def test_a_function_that_is_also_the_output_stays() -> None:
    model, x = Written(torch.sigmoid, torch.sigmoid), torch.randn(3, 4)
    with pytest.raises(Unfit):
        elu.apply(scene(model, x))


def test_modules_between_layers_are_replaced_and_the_output_stays() -> None:
    model = nn.Sequential(
        *(nn.Linear(4, 8), nn.Sigmoid(), nn.Dropout(0.1), nn.Linear(8, 8), nn.ReLU()),
        *(nn.BatchNorm1d(8), nn.Linear(8, 2), nn.Sigmoid()),
    )
    change = leaky_relu.apply(scene(model, torch.randn(5, 4)))
    kinds = [type(one).__name__ for one in model]
    assert kinds[1] == kinds[4] == "LeakyReLU"
    assert kinds[7] == "Sigmoid"
    assert not change.functions
    assert not change.imitates


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value, self.gate, self.out = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 2)
        self.act, self.squash = nn.Tanh(), nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.act(self.value(x)) * self.squash(self.gate(x)))
        return out


def test_gates_stay() -> None:
    with pytest.raises(Unfit):
        elu.apply(scene(Gated(), torch.randn(3, 4)))


def test_gates_of_a_recurrent_cell_stay() -> None:
    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.head = nn.Linear(8, 16), nn.Sequential(nn.ReLU(), nn.Linear(4, 2))

        def forward(self, x: Tensor) -> Tensor:
            h, c = x, torch.zeros_like(x)
            for _ in range(3):
                i, f, g, o = self.mix(torch.cat([x, h], 1)).chunk(4, 1)
                c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
                h = torch.sigmoid(o) * torch.tanh(c)
            out: Tensor = self.head(h)
            return out

    model = Cell()
    change = gelu.apply(scene(model, torch.randn(2, 4)))
    assert not change.functions
    assert isinstance(model.head[0], nn.GELU)


def test_transformer_layers_are_swapped_where_they_keep_a_function() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    change = gelu.apply(scene(layer, torch.randn(2, 3, 8)))
    assert set(change.functions) == {F.relu}


def test_an_activation_shared_by_layers_is_replaced_once_for_all() -> None:
    act = nn.ReLU()
    model = nn.Sequential(nn.Linear(4, 4), act, nn.Linear(4, 4), act, nn.Linear(4, 2))
    elu.apply(scene(model, torch.randn(3, 4)))
    assert not any(isinstance(one, nn.ReLU) for one in model.modules())


def test_without_a_loss_the_order_of_modules_stands_for_the_pass() -> None:
    model = Chain(4, 8, nn.ReLU)
    elu.apply(scene(model, torch.randn(2, 64), known=False))
    assert not any(isinstance(one, nn.ReLU) for one in model.modules())
    with pytest.raises(Unfit):  # a sigmoid may be a gate
        elu.apply(scene(Chain(4, 8, nn.Sigmoid), torch.randn(2, 64), known=False))


def test_the_slopes_of_prelu_join_the_optimizer() -> None:
    given = scene(Chain(3, 8), torch.randn(2, 64))
    prelu.apply(given)
    held = {id(one) for one in given.optimizer.param_groups[0]["params"]}
    assert {id(one) for one in given.model.parameters()} == held


def test_selu_keeps_mean_and_variance_over_thirty_layers() -> None:
    torch.manual_seed(0)
    model, x = Chain(30, 128), torch.randn(256, 64)
    selu.apply(scene(model, x))
    out = model.layers(x).detach()
    assert abs(float(out.mean())) < 0.1
    assert float(out.var()) == pytest.approx(1.0, rel=0.3)


def test_the_tailored_slope_takes_uncorrelated_inputs_to_nine_tenths() -> None:
    depth = 30
    torch.manual_seed(0)
    model, x = Chain(depth + 1, 512), torch.randn(2, 64)
    x[1] -= (x[1] @ x[0]) / (x[0] @ x[0]) * x[0]  # uncorrelated
    tailored_relu.apply(scene(model, x))
    slope = model.layers[1].negative_slope
    assert slope == pytest.approx(tailored_slope(depth), rel=1e-3)
    one, other = model.layers[:-1](x).detach()
    assert float(F.cosine_similarity(one, other, dim=0)) == pytest.approx(0.9, abs=0.05)
    assert float(one.square().mean()) == pytest.approx(float(x[0].square().mean()), rel=0.3)


def test_shallow_networks_need_no_tailoring() -> None:
    assert tailored_slope(1) == 0.0
    assert 0 < tailored_slope(20) < tailored_slope(100) < 1
    assert not math.isnan(tailored_slope(1000))


# --- Behind the last layer ------------------------------------------------------------------------


def test_a_relu_behind_the_last_layer_is_taken_away() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2), nn.ReLU())
    assert no_last_relu.apply(scene(model, torch.randn(3, 4))).patch.count("'3'") == 1
    assert [type(one).__name__ for one in model] == ["Linear", "ReLU", "Linear", "Identity"]
    with pytest.raises(Unfit):
        no_last_relu.apply(scene(model, torch.randn(3, 4)))


def test_a_function_behind_the_last_layer_is_taken_away_where_it_stands_nowhere_else() -> None:
    model, x = Written(F.relu, torch.tanh), torch.randn(3, 4)
    change = linear_output.apply(scene(model, x))
    with Instead(change.functions):
        out = model(x)
    assert torch.equal(out, model.two(F.relu(model.one(x))))
    with pytest.raises(Unfit):
        linear_output.apply(scene(Written(torch.tanh, torch.tanh), x))


def test_a_loss_of_probabilities_keeps_its_sigmoid() -> None:
    model, x = Written(F.relu, torch.sigmoid), torch.randn(3, 4)

    def loss(m: nn.Module) -> Tensor:
        return F.binary_cross_entropy(m(x), torch.ones(3, 2))

    with pytest.raises(Unfit, match="probabilities"):
        linear_output.apply(Scene(model, torch.optim.SGD(model.parameters(), 0.1), loss))
