"""Take first steps on copies, and see that nobody else's weights, hooks or schedules take part."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR
from torch.optim.optimizer import register_optimizer_step_pre_hook

from steadygrad._check import Setup, trace
from steadygrad.probe.sharpness import sharpness
from steadygrad.probe.subject import Subject, rng_states
from steadygrad.probe.update import update

X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long() + 2 * (X[:, 1] * X[:, 2] > 0).long()


def chain() -> nn.Module:
    return nn.Sequential(
        nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)
    )


def classify(model: nn.Module) -> Tensor:
    return functional.cross_entropy(model(X), Y)


def subject_of(
    model: nn.Module,
    optimizer: Optimizer | None,
    loss: Callable[[nn.Module], Tensor] | None = classify,
) -> Subject:
    forward = loss or (lambda m: m(X))
    return trace(model, Setup(forward, loss, optimizer, 0), rng_states())


OPTIMIZERS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "sgd": lambda m: SGD(m.parameters(), 0.1),
    "momentum": lambda m: SGD(m.parameters(), 0.1, momentum=0.9),
    "adam": lambda m: Adam(m.parameters(), 3e-3),
    "rmsprop": lambda m: RMSprop(m.parameters(), 1e-3),
    "groups": lambda m: AdamW([{"params": [p], "lr": 1e-3} for p in m.parameters()]),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_first_step_is_the_optimizers_own(name: str) -> None:
    model = chain()
    optimizer = OPTIMIZERS[name](model)
    facts = update(subject_of(model, optimizer)).facts["update"]
    before = classify(model)
    before.backward()
    optimizer.step()
    assert facts["loss_before"] == pytest.approx(before.item(), rel=1e-6)
    assert facts["loss_after"] == pytest.approx(classify(model).item(), rel=1e-5)
    assert facts["nonfinite"] == []


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_healthy_trial_has_one_arm_that_falls(name: str) -> None:
    model = chain()
    losses = update(subject_of(model, OPTIMIZERS[name](model))).facts["trial"]["losses"]
    assert list(losses) == ["lr"]
    assert losses["lr"][-1] < losses["lr"][0]


def test_weights_that_move_are_counted() -> None:
    model = chain()
    rows = update(subject_of(model, Adam(model.parameters(), 1e-3))).rows
    assert [site.name for site, _ in rows] == ["0.weight", "2.weight", "4.weight"]
    assert all(row["moved"] == pytest.approx(1.0, abs=0.01) for _, row in rows)
    assert all(1e-3 < row["update_ratio"] < 1e-1 for _, row in rows)


def test_what_fails_is_tried_at_smaller_rates() -> None:
    model = chain()
    losses = update(subject_of(model, SGD(model.parameters(), 100.0))).facts["trial"]["losses"]
    assert list(losses) == ["lr", "lr/10", "lr/100", "warm-up"]


def test_what_does_not_move_is_tried_at_a_larger_rate() -> None:
    model = chain()
    losses = update(subject_of(model, SGD(model.parameters(), 1e-8))).facts["trial"]["losses"]
    _, larger = losses
    assert larger.startswith("lr*")
    assert losses[larger][-1] < losses[larger][0]


@pytest.mark.parametrize(
    ("optimizer", "loss", "why"),
    [
        (None, classify, "no optimizer"),
        (lambda m: SGD(m.parameters(), 0.1), None, "no loss"),
        (lambda m: torch.optim.LBFGS(m.parameters()), classify, "closure"),
        (lambda _: SGD(chain().parameters(), 0.1), classify, "holds no parameter"),
        (lambda m: SGD(m.parameters(), 0.1), lambda m: classify(m).detach(), "no gradient"),
    ],
)
def test_what_cannot_be_tried_is_blind_with_the_reason(
    optimizer: Callable[[nn.Module], Optimizer] | None,
    loss: Callable[[nn.Module], Tensor] | None,
    why: str,
) -> None:
    model = chain()
    made = None if optimizer is None else optimizer(model)
    readings = update(subject_of(model, made, loss))
    assert why in readings.blind["update"]
    assert readings.facts == {}


def test_a_loss_that_changes_from_call_to_call_is_not_tried() -> None:
    model, count = chain(), iter(range(1000))
    loss = lambda m: classify(m) * (1 + next(count))  # noqa: E731
    readings = update(subject_of(model, SGD(model.parameters(), 0.1), loss))
    assert "differs" in readings.blind["trial"]


def test_a_trial_without_time_is_left_out() -> None:
    model = chain()
    readings = update(subject_of(model, SGD(model.parameters(), 0.1)), budget=0.0)
    assert "too long" in readings.blind["trial"]
    assert "update" in readings.facts


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: LambdaLR(o, lambda step: step / 10),
        lambda o: OneCycleLR(o, max_lr=0.1, total_steps=50),
    ],
)
def test_a_schedule_stays_where_it_is(schedule: Callable[[Optimizer], object]) -> None:
    model = chain()
    optimizer = SGD(model.parameters(), 0.1, momentum=0.9)
    schedule(optimizer)
    rates = [group["lr"] for group in optimizer.param_groups]
    before = copy.deepcopy(model.state_dict())
    facts = update(subject_of(model, optimizer)).facts["update"]
    assert [group["lr"] for group in optimizer.param_groups] == rates
    assert facts["lr"] == rates[0]
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())


def test_a_warm_up_from_zero_is_known_as_one() -> None:
    model = chain()
    optimizer = Adam(model.parameters())
    LambdaLR(optimizer, lambda step: step / 10)
    assert update(subject_of(model, optimizer)).facts["update"]["warming_up"]


def test_hooks_on_every_optimizer_do_not_hear_of_the_trial() -> None:
    model, heard = chain(), []
    handle = register_optimizer_step_pre_hook(lambda *given: heard.append(given))
    try:
        optimizer = Adam(model.parameters())
        optimizer.register_step_pre_hook(lambda *given: heard.append(given))
        update(subject_of(model, optimizer))
    finally:
        handle.remove()
    assert heard == []


def test_nothing_of_the_users_moves() -> None:
    model, centers = (
        nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.1), nn.Linear(8, 4)),
        nn.Linear(4, 4),
    )
    optimizer = Adam([*model.parameters(), *centers.parameters()], lr=1.0)
    loss = lambda m: functional.cross_entropy(centers(m(X)), Y)  # noqa: E731
    subject = subject_of(model, optimizer, loss)
    kept = copy.deepcopy([model.state_dict(), centers.state_dict()])
    random = torch.get_rng_state()
    update(subject)
    for module, state in zip((model, centers), kept, strict=True):
        assert all(torch.equal(one, state[name]) for name, one in module.state_dict().items())
        assert all(one.grad is None for one in module.parameters())
    assert len(optimizer.state) == 0
    assert torch.equal(random, torch.get_rng_state())


def test_adams_eps_is_zero_in_float16() -> None:
    model = chain().half()
    loss = lambda m: functional.cross_entropy(m(X.half()).float(), Y)  # noqa: E731
    facts = update(subject_of(model, Adam(model.parameters(), 1e-3), loss)).facts["update"]
    assert facts["grads_finite"]
    assert facts["nonfinite"]


def test_small_steps_are_lost_on_bfloat16_weights() -> None:
    model = chain().bfloat16()
    loss = lambda m: functional.cross_entropy(m(X.bfloat16()).float(), Y)  # noqa: E731
    facts = update(subject_of(model, AdamW(model.parameters(), 1e-6), loss)).facts["update"]
    assert facts["moved"] < 0.1
    assert facts["moved_later"] < 0.2


def test_the_curvature_of_a_quadratic_is_exact() -> None:
    layer = nn.Linear(3, 1, bias=False).double()
    x = torch.diag(torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64))
    subject = subject_of(layer, None, lambda m: 0.5 * m(x).square().sum())
    found = sharpness(subject, iterations=50, tolerance=1e-9)
    assert found == pytest.approx(25.0, rel=1e-6)


def test_an_op_without_second_derivative_is_said_so() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(_context: object, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(_context: object, grad: Tensor) -> Tensor:
            return grad * 2

    subject = subject_of(chain(), None, lambda m: Once.apply(m(X)).square().mean())
    assert isinstance(sharpness(subject), str)


def test_the_limit_of_gradient_descent_is_where_a_quadratic_stops_falling() -> None:
    layer = nn.Linear(8, 4)
    loss = lambda m: m(X).square().mean()  # noqa: E731
    top = sharpness(subject_of(layer, None, loss), iterations=100, tolerance=1e-6)
    assert isinstance(top, float)
    below, above = (
        update(subject_of(layer, SGD(layer.parameters(), share * 2 / top), loss)).facts
        for share in (0.9, 1.3)
    )
    assert below["trial"]["losses"]["lr"][-1] < below["update"]["loss_before"]
    assert above["trial"]["losses"]["lr"][-1] > above["update"]["loss_before"]
    assert math.isclose(below["sharpness"]["limit"], 2 / top, rel_tol=0.1)
