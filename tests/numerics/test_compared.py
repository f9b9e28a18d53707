"""Backward passes compared with differences: what is right, what is wrong, and where."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from steadygrad import numerics
from steadygrad.testing.nets import WrongLinear


def network(*kinds, width=24):
    torch.manual_seed(0)
    layers = [one for kind in kinds for one in (kind(width, width), nn.ReLU())]
    return nn.Sequential(*layers, nn.Dropout(0.2), nn.BatchNorm1d(width), nn.Linear(width, 3))


X, Y = torch.randn(32, 24, generator=torch.Generator().manual_seed(1)), torch.arange(32) % 3


def loss(model):
    return nn.functional.cross_entropy(model(X), Y)


def test_a_right_backward_agrees_in_five_passes():
    found = numerics.check(network(nn.Linear, nn.Linear), loss=loss)
    assert (found.verdict, found.wrong, found.passes) == ("agrees", (), 5)


@pytest.mark.parametrize("place", range(4))
def test_one_percent_in_one_parameter_is_named_in_nine_passes(place):
    kinds = [WrongLinear if one == place else nn.Linear for one in range(4)]
    found = numerics.check(network(*kinds), loss=loss)
    assert (found.verdict, found.wrong) == ("differs", (f"{2 * place}.weight",))
    assert found.passes == 9


def test_several_wrong_parameters_are_all_named():
    found = numerics.check(network(WrongLinear, nn.Linear, WrongLinear, WrongLinear), X)
    assert found.wrong == ("0.weight", "4.weight", "6.weight")


def test_a_detached_path_is_told():
    class Cut(nn.Linear):
        def forward(self, x):
            return nn.functional.linear(x, self.weight.detach(), self.bias)

    found = numerics.check(network(Cut, nn.Linear), X)
    assert found.wrong == ("0.weight",)


def test_a_loss_with_jumps_is_unsure():
    found = numerics.check(network(nn.Linear), loss=lambda m: m(X).mul(1e8).floor().div(1e8).sum())
    assert found.verdict != "agrees"


def test_the_model_and_the_random_state_are_left_alone():
    model = network(nn.Linear)
    before = {name: one.clone() for name, one in model.state_dict().items()}
    state = torch.get_rng_state()
    numerics.check(model, loss=loss)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert all(p.grad is None and p.dtype == torch.float32 for p in model.parameters())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_a_function_is_compared_element_by_element():
    x = np.array([1.0, 2.0, 3.0])
    right = numerics.check(lambda x: (x**3).sum(), x, slope=lambda x: 3 * x**2)
    assert right.verdict == "agrees"
    wrong = numerics.check(lambda x: (x**3).sum(), x, slope=lambda x: 3 * x**2 + [0, 0.1, 0])
    assert (wrong.verdict, wrong.wrong) == ("differs", ("[1]",))


def test_a_torch_function_is_compared_with_autograd():
    x = torch.tensor([1.0, 2.0])
    weight = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    assert numerics.check(lambda x: x.exp().sum(), x).verdict == "agrees"
    found = numerics.check(lambda x: (x.detach() * x).sum() + weight.sum(), x)
    assert found.wrong == ("[0]", "[1]")


def test_a_sentence_for_what_cannot_be_compared():
    with pytest.raises(ValueError, match="x or a loss"):
        numerics.check(network(nn.Linear))
    with pytest.raises(ValueError, match="check\\(f, x, slope=df\\)"):
        numerics.check(np.sum, np.ones(2))
    with pytest.raises(TypeError, match="one number as a tensor, got \\[32, 3\\]"):
        numerics.check(network(nn.Linear), loss=lambda m: m(X))
    with pytest.raises(ValueError, match="it has none"):
        numerics.check(nn.ReLU(), X)
    with pytest.raises(ValueError, match="shape of x"):
        numerics.check(np.sum, np.ones(2), slope=np.sum)


def test_a_gradient_near_zero_is_no_false_alarm():
    model = network(nn.Linear)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=200, line_search_fn="strong_wolfe")
    x, y = X[:, :24], torch.randn(32, 3, generator=torch.Generator().manual_seed(2))

    def fit(m):
        return nn.functional.mse_loss(m.eval()(x), y)

    def closure():
        optimizer.zero_grad()
        loss = fit(model)
        loss.backward()
        return loss

    optimizer.step(closure)
    for seed in range(5):
        assert numerics.check(model, loss=fit, seed=seed).verdict != "differs"


def test_a_loss_that_ignores_the_model_is_refused():
    with pytest.raises(ValueError, match="depends on the model's parameters"):
        numerics.check(network(nn.Linear), loss=lambda m: X.sum())


def test_complex_parameters_are_refused():
    model = nn.Linear(2, 2, dtype=torch.complex64)
    with pytest.raises(TypeError, match="weight, which is complex"):
        numerics.check(model, torch.randn(3, 2, dtype=torch.complex64))


@pytest.mark.parametrize("seed", range(6))
def test_right_models_of_many_kinds_agree(seed):
    torch.manual_seed(seed)
    models = (
        (nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), torch.randn(4, 5, 16)),
        (nn.LSTM(8, 12, batch_first=True), torch.randn(4, 6, 8)),
        (
            nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
            torch.randn(4, 3, 10, 10),
        ),
        (
            nn.Sequential(*(one for _ in range(20) for one in (nn.Linear(16, 16), nn.Tanh()))),
            torch.randn(8, 16),
        ),
    )
    for model, x in models:
        found = numerics.check(model, x, seed=seed)
        assert found.verdict == "agrees", found.says
