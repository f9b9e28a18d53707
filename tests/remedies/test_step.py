"""Optimizers that stand in, learning rates that come back, guards, and the wiring."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import ExponentialLR

from steadygrad.remedies.decay import weaker_decay
from steadygrad.remedies.epsilon import eps_half, larger_eps
from steadygrad.remedies.guarded import GUARDS
from steadygrad.remedies.instead import Instead
from steadygrad.remedies.rate import FACTORS, sharpness_lr, warm_up
from steadygrad.remedies.remedy import Change, Remedy, Scene, Unfit
from steadygrad.remedies.substitute import adam, adamw, rmsprop, sgd_momentum
from steadygrad.remedies.wiring import (
    follow_requires_grad,
    rebuild_optimizer,
    register,
    zero_before_backward,
)

Make = Callable[[nn.Module], Optimizer]
X, Y = torch.randn(16, 4, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 3


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def cost(model: nn.Module) -> Tensor:
    return F.cross_entropy(model(X), Y)


def train(
    model: nn.Module, optimizer: Optimizer, change: Change, *, steps: int = 6, decay: float = 1.0
) -> list[float]:
    """Train, with a scheduler; return the learning rate that the user sees before each step."""
    scheduler, seen = ExponentialLR(optimizer, decay), []
    for number in range(steps):
        optimizer.zero_grad()
        cost(model).backward()
        seen.append(optimizer.param_groups[0]["lr"])
        if change.before is not None:
            change.before(optimizer, number)
        optimizer.step()
        if change.after is not None:
            change.after(optimizer, number)
        scheduler.step()
    return seen


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def group(model: nn.Module, lr: float) -> list[dict[str, Any]]:
    return [
        {"params": list(model[0].parameters()), "lr": lr},
        {"params": list(model[2].parameters()), "lr": lr / 10},
    ]


@pytest.mark.parametrize(
    ("remedy", "direct"),
    [
        (adam, lambda m: Adam(group(m, 1e-3))),
        (adamw, lambda m: AdamW(group(m, 1e-3))),
        (rmsprop, lambda m: RMSprop(group(m, 1e-3))),
        (sgd_momentum, lambda m: SGD(group(m, 0.1), momentum=0.9)),
    ],
)
def test_a_substitute_is_bit_by_bit_that_optimizer_from_the_start(
    remedy: Remedy, direct: Make
) -> None:
    mine, theirs = network(), network()
    optimizer = SGD(group(mine, 0.1))
    change = remedy.apply(Scene(mine, optimizer, cost))
    train(mine, optimizer, change, decay=0.5)
    train(theirs, direct(theirs), Change(""), decay=0.5)
    assert same(mine, theirs)
    assert not optimizer.state or all(not state for state in optimizer.state.values())


def test_gradients_are_back_after_the_step() -> None:
    model = network()
    optimizer = SGD(model.parameters(), 0.1)
    train(model, optimizer, adam.apply(Scene(model, optimizer, cost)), steps=1)
    assert all(one.grad is not None and bool(one.grad.any()) for one in model.parameters())


def test_weight_decay_and_later_groups_are_taken_over() -> None:
    mine, theirs = network(), network()
    optimizer = SGD(mine[0].parameters(), 0.1, weight_decay=0.5)
    direct = Adam(theirs[0].parameters(), 1e-3, weight_decay=0.5)
    change = adam.apply(Scene(mine, optimizer, cost))
    optimizer.add_param_group({"params": mine[2].parameters(), "lr": 0.01})
    direct.add_param_group({"params": theirs[2].parameters(), "lr": 1e-4})
    train(mine, optimizer, change)
    train(theirs, direct, Change(""))
    assert same(mine, theirs)


def test_an_optimizer_of_the_kind_is_left() -> None:
    model = network()
    for remedy, make in ((adam, Adam), (adamw, AdamW), (rmsprop, RMSprop)):
        with pytest.raises(Unfit):
            remedy.apply(Scene(model, make(model.parameters(), 1e-3), cost))
    with pytest.raises(Unfit):
        sgd_momentum.apply(Scene(model, SGD(model.parameters(), 0.1, momentum=0.5), cost))


@pytest.mark.parametrize("remedy", FACTORS, ids=lambda one: one.name)
def test_a_learning_rate_is_another_in_the_step_and_itself_to_the_schedule(remedy: Remedy) -> None:
    mine, theirs = network(), network()
    factor = float(remedy.name.removeprefix("lr-x"))
    optimizer = SGD(mine.parameters(), 0.1)
    seen = train(mine, optimizer, remedy.apply(Scene(mine, optimizer, cost)), decay=0.5)
    train(theirs, SGD(theirs.parameters(), 0.1 * factor), Change(""), decay=0.5)
    assert seen == [0.1 * 0.5**number for number in range(6)]
    pairs = zip(mine.parameters(), theirs.parameters(), strict=True)
    assert all(torch.allclose(a, b, rtol=1e-6) for a, b in pairs)


def test_a_step_that_raised_does_not_multiply_twice() -> None:
    optimizer = SGD(network().parameters(), 1.0)
    tenth = next(one for one in FACTORS if one.name == "lr-x0.1")
    change = tenth.apply(Scene(nn.Identity(), optimizer))
    assert change.before is not None
    change.before(optimizer, 0)
    change.before(optimizer, 1)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


def test_warm_up_lasts_as_long_as_the_second_moments_need() -> None:
    model = network()
    for beta, steps in ((0.9, 20), (0.95, 40), (0.999, 200)):
        optimizer = Adam(model.parameters(), 1.0, betas=(0.9, beta))
        change = warm_up.apply(Scene(model, optimizer, cost))
        assert change.before is not None
        change.before(optimizer, 9)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(10 / steps)


def test_the_lr_from_sharpness_is_at_four_fifths_of_the_limit_of_a_quadratic() -> None:
    model = nn.Linear(2, 1, bias=False)
    x = torch.diag(torch.tensor([1.0, 3.0]))
    optimizer = SGD(model.parameters(), 1e-3, momentum=0.5)
    change = sharpness_lr.apply(Scene(model, optimizer, lambda m: m(x).square().sum()))
    assert change.before is not None
    change.before(optimizer, 0)
    curvature = 2 * 9.0
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.8 * 3 / curvature, rel=0.02)
    flat = sharpness_lr.apply(Scene(model, optimizer, lambda m: 1e-9 * m(x).square().sum()))
    assert flat.patch.endswith("*= 7.52")  # from 0.133 to 1, where everything is flat
    with pytest.raises(Unfit):
        sharpness_lr.apply(Scene(model, Adam(model.parameters()), cost))


def test_guards_clip_as_torch_does_and_refuse_what_cannot_be_guarded() -> None:
    mine, theirs = network(), network()
    optimizer, plain = SGD(mine.parameters(), 1.0), SGD(theirs.parameters(), 1.0)
    guard = next(one for one in GUARDS if one.name == "clip-norm")
    guard.apply(Scene(mine, optimizer))
    for model, stepped in ((mine, optimizer), (theirs, plain)):
        (100 * cost(model)).backward()
        if model is theirs:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        stepped.step()
    assert same(mine, theirs)
    with pytest.raises(Unfit, match="guarded"):
        guard.apply(Scene(mine, optimizer))


# --- Epsilons -------------------------------------------------------------------------------------


def test_eps_rises_for_half_precision_only() -> None:
    model = network()
    with pytest.raises(Unfit):
        eps_half.apply(Scene(model, Adam(model.parameters()), cost))
    optimizer = Adam(model.half().parameters())
    eps_half.apply(Scene(model, optimizer))
    assert optimizer.param_groups[0]["eps"] == 1e-4


def test_decay_is_divided_until_it_is_usual() -> None:
    model = network()
    optimizer = SGD(model.parameters(), 0.1, weight_decay=10.0)
    weaker_decay.apply(Scene(model, optimizer))
    assert optimizer.param_groups[0]["weight_decay"] == pytest.approx(1e-4)
    with pytest.raises(Unfit):
        weaker_decay.apply(Scene(model, SGD(model.parameters(), 0.1, weight_decay=1e-4)))


def test_the_eps_of_norms_rises() -> None:
    model = nn.Sequential(nn.LayerNorm(3), nn.BatchNorm1d(3, eps=1e-3))
    larger_eps.apply(Scene(model, SGD(model.parameters(), 0.1)))
    assert [one.eps for one in model] == [1e-4, 1e-3]


@pytest.mark.parametrize("given", [(), (2.0, -1, 1e-12)])
def test_the_eps_of_normalize_rises(given: tuple[Any, ...]) -> None:
    model = nn.Linear(3, 3, bias=False)
    nn.init.zeros_(model.weight)

    def loss(m: nn.Module) -> Tensor:
        return F.normalize(m(torch.ones(2, 3)), *given).sum()

    change = larger_eps.apply(Scene(model, SGD(model.parameters(), 0.1), loss))
    with Instead(change.functions):
        loss(model).backward()
    assert torch.allclose(model.weight.grad, torch.full((3, 3), 2e4))


# --- Wiring ---------------------------------------------------------------------------------------


def test_gradients_no_longer_pile_up() -> None:
    model = network()
    optimizer = SGD(model.parameters(), 0.1)
    change = zero_before_backward.apply(Scene(model, optimizer, cost))
    cost(model).backward()
    optimizer.step()
    assert change.after is not None
    change.after(optimizer, 0)
    assert all(one.grad is None for one in model.parameters())


def test_missing_parameters_join_the_first_group() -> None:
    model = network()
    optimizer = SGD(model[0].parameters(), 0.1)
    rebuild_optimizer.apply(Scene(model, optimizer, cost))
    assert len(optimizer.param_groups) == 1
    held = {id(one) for one in optimizer.param_groups[0]["params"]}
    assert held == {id(one) for one in model.parameters()}
    with pytest.raises(Unfit):
        rebuild_optimizer.apply(Scene(model, optimizer, cost))


def test_hidden_modules_are_registered_and_stepped() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.layers = [nn.Linear(4, 4), nn.ReLU()]
            self.heads = {"a": nn.Linear(4, 2)}
            self.sizes = [4, 4]

    model = Hidden()
    optimizer = SGD(model.parameters(), 0.1)
    register.apply(Scene(model, optimizer))
    assert isinstance(model.layers, nn.ModuleList)
    assert isinstance(model.heads, nn.ModuleDict)
    assert model.sizes == [4, 4]
    held = {id(one) for one in optimizer.param_groups[0]["params"]}
    assert held == {id(one) for one in model.parameters()}
    assert len(held) == 6
    with pytest.raises(Unfit):
        register.apply(Scene(model, optimizer))


def test_frozen_parameters_are_trained_where_the_finding_points() -> None:
    model = network()
    model.requires_grad_(False)
    optimizer = SGD(model.parameters(), 0.1)
    follow_requires_grad.apply(Scene(model, optimizer, where=("2",)))
    assert [one.requires_grad for one in model.parameters()] == [False, False, True, True]
    follow_requires_grad.apply(Scene(model, optimizer))
    assert all(one.requires_grad for one in model.parameters())
    with pytest.raises(Unfit):
        follow_requires_grad.apply(Scene(model, optimizer))
