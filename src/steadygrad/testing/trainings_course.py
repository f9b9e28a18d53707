"""Trainings that go astray with time: the lr, dying units, faint gradients, and spikes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 as everybody writes it
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from steadygrad.testing import data, nets
from steadygrad.testing.setup import Step, adam, sgd
from steadygrad.testing.training_case import Training, fit, ill

Rate = Callable[[int], float]


def _on_digits(model: nn.Module, step: Step, steps: int = 100) -> nn.Module:
    optimizer = step(list(model.parameters()))

    def loss_of(_step: int) -> Tensor:
        x, y = data.digits(32)
        return F.cross_entropy(model(x), y)

    return fit(model, optimizer, loss_of, steps)


def _chain(depth: int, step: Step, steps: int = 100) -> nn.Module:
    return _on_digits(nets.Chain(depth), step, steps)


def _scheduled(rate: Rate, step: Step, steps: int = 100) -> nn.Module:
    """The lr follows a schedule."""
    model = nets.Chain(3)
    optimizer = step(list(model.parameters()))
    schedule = LambdaLR(optimizer, rate)

    def loss_of(_step: int) -> Tensor:
        x, y = data.digits(32)
        return F.cross_entropy(model(x), y)

    for number in range(steps):
        optimizer.zero_grad()
        loss_of(number).backward()
        optimizer.step()
        schedule.step()
    return model


def _dying(rate: Rate) -> nn.Module:
    """One step at a hundred times the lr, in the middle of the training."""
    model = nets.fill(nets.Chain(4), nets.he)
    optimizer = SGD(model.parameters(), lr=0.05)
    for step in range(200):
        x, y = data.digits(32)
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def _regressed(
    outlier: Callable[[int], float], max_norm: float, step: Step, steps: int = 300
) -> nn.Module:
    """Regression with an outlier among the targets."""
    model = nets.fill(nets.Chain(3, sizes=(12, 1)), nets.he)
    optimizer = step(list(model.parameters()))

    def loss_of(number: int) -> Tensor:
        x, y = data.table(64)
        y[3] *= outlier(number)
        return F.mse_loss(model(x), y)

    def clip(_step: int) -> None:
        nn.utils.clip_grad_norm_(model.parameters(), max_norm)

    return fit(model, optimizer, loss_of, steps, clip)


def _clipped(max_norm: float) -> nn.Module:
    model = nets.Chain(3)
    optimizer = SGD(model.parameters(), lr=0.1)

    def loss_of(_step: int) -> Tensor:
        x, y = data.digits(32)
        return F.cross_entropy(model(x), y)

    def clip(_step: int) -> None:
        nn.utils.clip_grad_norm_(model.parameters(), max_norm)

    return fit(model, optimizer, loss_of, 300, clip)


def _deep(act: Callable[[], nn.Module], skips: bool) -> nn.Module:
    """Twenty layers, each of which passes a quarter of the gradient, or skips around them."""
    body: nn.Module = nets.Chain(20, 32, act)
    if skips:
        body = nets.Residual(10, 32)
    return _on_digits(body, adam(), 200)


def _raw(scaled: bool) -> nn.Module:
    """Pixels as they are stored, 0 to 255, before a tanh."""
    model = nets.Chain(3, act=nn.Tanh)
    optimizer = SGD(model.parameters(), lr=0.1)

    def loss_of(_step: int) -> Tensor:
        x, y = data.raw_digits(32)
        return F.cross_entropy(model((x - 4.9) / 6.0 if scaled else 255.0 - 16 * x), y)

    return fit(model, optimizer, loss_of, 300)


def _unrolled(gain: float, max_norm: float) -> nn.Module:
    """A ReLU recurrence over fifty steps, whose matrix grows what it is given."""
    rnn = nn.RNN(4, 32, batch_first=True, nonlinearity="relu")
    model = nets.Recurrent(rnn, 32)
    with torch.no_grad():
        rnn.get_parameter("weight_hh_l0").copy_(gain * torch.eye(32))
    optimizer = SGD(model.parameters(), lr=0.05)

    def loss_of(_step: int) -> Tensor:
        x, y = data.sequences(32, 50)
        return F.cross_entropy(model(x), y)

    def clip(_step: int) -> None:
        nn.utils.clip_grad_norm_(model.parameters(), max_norm)

    return fit(model, optimizer, loss_of, 60, clip)


def _constant(value: float) -> Rate:
    return lambda _step: value


TRAININGS: tuple[Training, ...] = (
    ill(
        "sgd-lr-100",
        "G412 G101 G401 G301",
        "optimizer lr layers head",
        partial(_chain, 3, sgd(100.0)),
        partial(_chain, 3, sgd(0.3)),
        "a hundred times the largest stable lr",
    ),
    ill(
        "sgd-lr-10-regression",
        "G412 G101 G401",
        "optimizer lr layers head",
        partial(_regressed, _constant(1.0), torch.inf, sgd(2.0)),
        partial(_regressed, _constant(1.0), torch.inf, sgd(0.03)),
        "the loss overflows in some steps",
    ),
    ill(
        "momentum-on-a-large-lr",
        "G412 G101 G401",
        "optimizer lr layers head",
        partial(_chain, 6, sgd(3.0, 0.9), 100),
        partial(_chain, 6, sgd(0.03, 0.9), 100),
        "quiet for ten steps, then infinite within five",
    ),
    ill(
        "adam-lr-1",
        "G412 G401 G301",
        "optimizer lr layers head",
        partial(_chain, 5, adam(1.0)),
        partial(_chain, 5, adam(3e-3)),
        "every weight moves by one in each of the first steps",
    ),
    ill(
        "lr-too-low",
        "G402",
        "lr optimizer",
        partial(_chain, 3, sgd(1e-6), 300),
        partial(_chain, 3, sgd(0.1), 300),
        "ten thousand steps could not take off a tenth of the loss",
    ),
    ill(
        "clipped-to-nothing",
        "G402 G409 G408",
        "lr optimizer",
        partial(_clipped, 1e-6),
        partial(_clipped, 10.0),
        "a threshold of 1e-6 is an lr of next to nothing",
    ),
    ill(
        "lr-doubles-each-step",
        "G412 G101 G108 G401",
        "optimizer lr layers head",
        partial(_scheduled, lambda step: 1.2**step, sgd(0.01)),
        partial(_scheduled, lambda step: min(1.0, (step + 1) / 50), sgd(0.1)),
        "a schedule that multiplies where it should have added",
    ),
    ill(
        "relus-that-die",
        "G301 G108 G412",
        "layers head optimizer lr",
        partial(_dying, lambda step: 20.0 if step == 60 else 0.05),
        partial(_dying, lambda step: 0.2 if step == 60 else 0.05),
        "one step at four hundred times the lr shuts all units of a layer",
    ),
    ill(
        "spike-that-stays",
        "G108 G412 G301",
        "optimizer layers head",
        partial(_regressed, lambda n: 1e5 if n == 120 else 1.0, torch.inf, sgd(0.03)),
        partial(_regressed, lambda n: 1e5 if n == 120 else 1.0, 10.0, sgd(0.03)),
        "one target a hundred thousand times too large throws the weights far off",
    ),
    ill(
        "sigmoid-20",
        "G102",
        "layers",
        partial(_deep, nn.Sigmoid, False),
        partial(_deep, nn.ReLU, True),
        "each layer passes at most a quarter of the gradient",
    ),
    ill(
        "default-relu-20",
        "G102",
        "layers",
        partial(_chain, 20, sgd(0.05), 200),
        lambda: _on_digits(nets.fill(nets.Chain(20), nets.he), sgd(0.05), 200),
        "each default layer passes a sixth of the variance",
    ),
    ill(
        "raw-pixels-before-tanh",
        "G302",
        "layers",
        partial(_raw, False),
        partial(_raw, True),
        "inputs of two hundred push every tanh to its ends",
    ),
    ill(
        "growing-recurrence",
        "G101 G412 G106 G108 G002 G003 G004",
        "rnn optimizer loss head",
        partial(_unrolled, 2.0, torch.inf),
        partial(_unrolled, 1.0, 1.0),
        "a gradient through fifty steps grows by two in each",
    ),
)
