"""Losses with the wrong shape, axis, or weights, and steps that half precision loses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steadygrad.remedies.applied import BY_NAME
from steadygrad.remedies.bad_data import drop_bad_samples
from steadygrad.remedies.instead import Instead
from steadygrad.remedies.precision import float32_weights
from steadygrad.remedies.rate import default_lr
from steadygrad.remedies.remedy import Change, Remedy, Scene, Unfit
from steadygrad.remedies.residual import add_residual
from steadygrad.remedies.scores import log_softmax
from steadygrad.remedies.targets import class_axis, finite_class_weights, same_shape
from steadygrad.testing import Case, check_remedy


def scene(model: nn.Module, loss: object, lr: float = 0.1) -> Scene:
    optimizer = torch.optim.Adam(model.parameters(), lr)
    return Scene(model, optimizer, loss)  # type: ignore[arg-type]


def value(change: Change, loss: object, model: nn.Module) -> float:
    with Instead(change.functions):
        return float(loss(model).detach())  # type: ignore[operator]


def test_targets_are_given_the_shape_of_predictions_in_losses_and_by_hand() -> None:
    model, x, y = nn.Linear(3, 1), torch.randn(6, 3), torch.randn(6)
    right = float(F.mse_loss(model(x), y[:, None]).detach())
    losses = [
        lambda m: F.mse_loss(m(x), y),
        lambda m: (m(x) - y).square().mean(),
        lambda m: torch.sub(m(x), y).square().mean(),
    ]
    for loss in losses:
        assert value(same_shape.apply(scene(model, loss)), loss, model) == pytest.approx(right)
    with pytest.raises(Unfit):
        same_shape.apply(scene(model, lambda m: F.mse_loss(m(x), y[:, None])))
    with pytest.raises(Unfit):  # all pairs, with an axis put into both
        same_shape.apply(scene(model, lambda m: (m(x)[:, None] - y[None, :, None]).square().sum()))


def test_a_softmax_over_samples_goes_over_classes() -> None:
    model, x, y = nn.Linear(3, 4), torch.randn(6, 3), torch.arange(6) % 4
    right = float(F.cross_entropy(model(x), y).detach())
    for softmax in (F.log_softmax, torch.log_softmax, Tensor.log_softmax):

        def loss(m: nn.Module, softmax: object = softmax) -> Tensor:
            return F.nll_loss(softmax(m(x), dim=0), y)  # type: ignore[operator]

        assert value(class_axis.apply(scene(model, loss)), loss, model) == pytest.approx(right)
    with pytest.raises(Unfit):
        class_axis.apply(scene(model, lambda m: F.nll_loss(F.log_softmax(m(x), 1), y)))


@pytest.mark.parametrize("weight", [[1.0, math.inf, 1.0], [0.0, 0.0, 0.0], [math.nan, 1.0, 1.0]])
def test_class_weights_that_are_no_weights_are_one(weight: list[float]) -> None:
    model, x, y = nn.Linear(4, 3), torch.randn(6, 4), torch.arange(6) % 3

    def loss(m: nn.Module) -> Tensor:
        return F.cross_entropy(m(x), y, torch.tensor(weight))

    right = float(F.cross_entropy(model(x), y).detach())
    assert value(finite_class_weights.apply(scene(model, loss)), loss, model) == pytest.approx(
        right
    )


def test_class_weights_that_are_weights_are_left() -> None:
    model, x, y = nn.Linear(4, 3), torch.randn(6, 4), torch.arange(6) % 3
    with pytest.raises(Unfit):
        finite_class_weights.apply(
            scene(model, lambda m: F.cross_entropy(m(x), y, torch.tensor([0.0, 2.0, 1.0])))
        )


def test_the_log_of_a_softmax_or_sigmoid_is_taken_in_one_step() -> None:
    model, x, y = nn.Linear(3, 4), 1e3 * torch.randn(6, 3), torch.arange(6) % 4

    def softmax(m: nn.Module) -> Tensor:
        return F.nll_loss(torch.log(torch.softmax(m(x), -1)), y)

    def sigmoid(m: nn.Module) -> Tensor:
        return -m(x).sigmoid().log().mean()

    for loss, right in (
        (softmax, F.cross_entropy(model(x), y)),
        (sigmoid, -F.logsigmoid(model(x)).mean()),
    ):
        assert math.isinf(float(loss(model).detach()))
        change = log_softmax.apply(scene(model, loss))
        assert value(change, loss, model) == pytest.approx(float(right.detach()), rel=1e-5)
    with pytest.raises(Unfit):
        log_softmax.apply(scene(model, lambda m: m(x).exp().log().mean()))


def test_a_softmax_over_nothing_is_zero_and_has_a_gradient_elsewhere() -> None:
    model, x = nn.Linear(3, 3), torch.randn(2, 3)
    mask = torch.tensor([[True, True, True], [False, False, True]])

    def loss(m: nn.Module) -> Tensor:
        return F.softmax(m(x).masked_fill(mask, -math.inf), -1).square().sum()

    change = BY_NAME["safe-softmax"].apply(scene(model, loss))
    with Instead(change.functions):
        found = loss(model)
        found.backward()
    assert math.isfinite(float(found.detach()))
    assert bool(model.weight.grad is not None and model.weight.grad.isfinite().all())
    assert bool(model.weight.grad.any())


def test_samples_with_a_bad_target_add_nothing() -> None:
    model, x, y = nn.Linear(3, 1), torch.randn(6, 3), torch.randn(6, 1)
    kept = y.clone()
    y[2] = math.nan

    def loss(m: nn.Module) -> Tensor:
        return F.mse_loss(m(x), y, reduction="sum")

    change = drop_bad_samples.apply(scene(model, loss))
    with_all = F.mse_loss(model(x), kept, reduction="none").detach()
    assert value(change, loss, model) == pytest.approx(float(with_all.sum() - with_all[2]))


def half() -> Case:
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).bfloat16()
    x, y = torch.randn(8, 4).bfloat16(), torch.arange(8) % 2
    optimizer = torch.optim.Adam(model.parameters(), 1e-6)
    return Case(model, x, lambda m: F.cross_entropy(m(x).float(), y), optimizer)


def broadcast() -> Case:
    model, x, y = nn.Linear(3, 1), torch.randn(6, 3), torch.randn(6)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    return Case(model, x, lambda m: F.mse_loss(m(x), y), optimizer)


def deep() -> Case:
    layers = [one for _ in range(4) for one in (nn.Linear(6, 6), nn.Tanh())]
    model, x, y = nn.Sequential(*layers, nn.Linear(6, 2)), torch.randn(8, 6), torch.arange(8) % 2
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    return Case(model, x, lambda m: F.cross_entropy(m(x), y), optimizer)


@pytest.mark.parametrize(
    ("remedy", "make"),
    [(add_residual, deep), (float32_weights, half), (default_lr, half), (same_shape, broadcast)],
)
def test_remedies_of_rare_faults_keep_the_contract(remedy: Remedy, make: object) -> None:
    assert check_remedy(remedy, make) is not None  # type: ignore[arg-type]


def test_steps_that_bfloat16_rounds_away_add_up_in_float32() -> None:
    torch.manual_seed(0)
    moved = []
    for helped in (False, True):
        model = nn.Linear(4, 4, bias=False).bfloat16()
        nn.init.ones_(model.weight)
        optimizer = torch.optim.SGD(model.parameters(), 1e-4)
        if helped:
            float32_weights.apply(Scene(model, optimizer, None))
        for _ in range(100):
            model.weight.grad = torch.ones_like(model.weight)
            optimizer.step()
        assert model.weight.dtype is torch.bfloat16
        assert model.weight.grad is not None
        assert model.weight.grad.dtype is torch.bfloat16
        moved.append(1 - float(model.weight.detach().mean()))
    assert moved[0] == 0
    assert moved[1] == pytest.approx(0.01, abs=2**-8)


def test_the_usual_learning_rate_is_that_of_adam() -> None:
    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    change = default_lr.apply(scene(model, lambda m: m(x).sum(), lr=1.0))
    assert "0.001" in change.patch
    with pytest.raises(Unfit):
        default_lr.apply(scene(model, lambda m: m(x).sum(), lr=2e-3))
    sgd = torch.optim.SGD(model.parameters(), 1.0)
    with pytest.raises(Unfit):
        default_lr.apply(Scene(model, sgd, lambda m: m(x).sum()))


def test_skips_are_put_around_layers_that_keep_the_shape() -> None:
    layers = [one for _ in range(4) for one in (nn.Linear(6, 6), nn.ReLU())]
    model, x = (
        nn.Sequential(nn.Linear(5, 6), nn.ReLU(), *layers, nn.Linear(6, 2)),
        torch.randn(3, 5),
    )
    h = F.relu(model[0](x))
    for index in (2, 4, 6, 8):
        h = F.relu(h + 0.5 * model[index](h))
    right = model[10](h)
    add_residual.apply(scene(model, lambda m: m(x).sum()))
    assert torch.allclose(model(x), right)


def test_skips_are_not_put_where_there_are_some_or_where_inputs_are_shared() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            for one in self.layers:
                x = x + F.relu(one(x))
            return x

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(6, 6)
            self.q, self.k, self.v = (nn.Linear(6, 6) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            h = self.body(x)
            out: Tensor = (self.q(h) @ self.k(h).T).softmax(-1) @ self.v(h)
            return out

    for model in (Residual(), Heads()):
        with pytest.raises(Unfit):
            add_residual.apply(scene(model, lambda m: m(torch.randn(3, 6)).sum()))


def test_masks_of_0_and_255_are_made_0_and_1_and_the_loss_is_another() -> None:
    model, x, y = nn.Linear(3, 2), torch.randn(6, 3), 255.0 * torch.randint(2, (6, 2))

    def loss(m: nn.Module) -> Tensor:
        return F.binary_cross_entropy_with_logits(m(x), y)

    right = float(F.binary_cross_entropy_with_logits(model(x), y / 255).detach())
    change = BY_NAME["unit-targets"].apply(scene(model, loss))
    assert value(change, loss, model) == pytest.approx(right)
    assert change.own
    with pytest.raises(Unfit):
        BY_NAME["unit-targets"].apply(
            scene(model, lambda m: F.binary_cross_entropy_with_logits(m(x), y / 255))
        )


def test_nll_loss_of_scores_or_probabilities_is_given_their_logs() -> None:
    model, x, y = nn.Linear(3, 4), torch.randn(6, 3), torch.arange(6) % 4
    right = float(F.cross_entropy(model(x), y).detach())
    remedy = BY_NAME["log-probabilities"]
    for given in (lambda h: h, lambda h: h.softmax(1)):

        def loss(m: nn.Module, given: object = given) -> Tensor:
            return F.nll_loss(given(m(x)), y)  # type: ignore[operator]

        assert value(remedy.apply(scene(model, loss)), loss, model) == pytest.approx(right, 1e-5)
    with pytest.raises(Unfit):
        remedy.apply(scene(model, lambda m: F.nll_loss(m(x).log_softmax(1), y)))


class Cut(nn.Module):
    def __init__(self, cut: str) -> None:
        super().__init__()
        self.encoder, self.head, self.cut = nn.Linear(3, 4), nn.Linear(4, 2), cut

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(self.cut != "no_grad"):
            h = self.encoder(x)
        if self.cut == "round":
            h = h.round()
        out: Tensor = self.head(h.detach() if self.cut == "detach" else h)
        return out


@pytest.mark.parametrize(
    ("cut", "name"),
    [("no_grad", "keep-the-graph"), ("detach", "keep-the-graph"), ("round", "straight-through")],
)
def test_gradients_pass_what_cut_them_off(cut: str, name: str) -> None:
    model, x = Cut(cut), torch.randn(5, 3)
    before = model(x).detach()

    def loss(m: nn.Module) -> Tensor:
        out: Tensor = m(x).square().sum()
        return out

    change = BY_NAME[name].apply(scene(model, loss))
    with Instead(change.functions):
        out = model(x)
        out.square().sum().backward()
    assert torch.allclose(out, before)
    assert model.encoder.weight.grad is not None
    assert bool(model.encoder.weight.grad.any())
    assert torch.is_grad_enabled()
    with torch.no_grad():
        assert not model(x).requires_grad
    for other in ("keep-the-graph", "straight-through"):
        with pytest.raises(Unfit):
            BY_NAME[other].apply(scene(Cut(""), lambda m: m(x).square().sum()))
