"""Patients whose activations block: dead, saturated, or squashed where the loss wants numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 as everybody writes it

from steadygrad.testing import data, nets
from steadygrad.testing.case import Case, Patient, sick
from steadygrad.testing.setup import adam, on_digits, on_images, on_table, supervised


class Ended(nn.Module):
    """A small network with a module at its end."""

    def __init__(self, end: nn.Module, sizes: tuple[int, int] = (64, 10)) -> None:
        super().__init__()
        self.body = nets.fill(nets.Chain(3, 32, sizes=sizes), nets.he)
        self.end = end

    def forward(self, x: Tensor) -> Tensor:
        """Return end(body(x))."""
        out: Tensor = self.end(self.body(x))
        return out


class Gated(nn.Module):
    """A network of layers h * sigmoid(gate(h)) with a bias on its gates."""

    def __init__(self, bias: float, depth: int = 3) -> None:
        super().__init__()
        self.values = nn.ModuleList(nn.Linear(64, 64) for _ in range(depth))
        self.gates = nn.ModuleList(nn.Linear(64, 64) for _ in range(depth))
        self.squash = nn.ModuleList(nn.Sigmoid() for _ in range(depth))
        self.head = nn.Linear(64, 10)
        for gate in self.gates:
            nn.init.constant_(gate.get_parameter("bias"), bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores [batch, classes]."""
        for value, gate, squash in zip(self.values, self.gates, self.squash, strict=True):
            x = 2 * value(x) * squash(gate(x))
        scores: Tensor = self.head(x)
        return scores


def _shifted(model: nn.Module, name: str, shift: float, share: float = 1.0) -> nn.Module:
    bias = model.get_parameter(name)
    with torch.no_grad():
        bias[: round(share * len(bias))] += shift
    return model


def _dead_layer(shift: float) -> Case:
    model = nets.fill(nets.Chain(10), nets.he)
    return on_digits(_shifted(model, "layers.8.bias", shift), step=adam())


def _dead_channels(shift: float) -> Case:
    return on_images(_shifted(nets.vgg10(), "features.12.bias", shift, 0.95), step=adam())


def _dead_block(shift: float) -> Case:
    return on_images(_shifted(nets.ConvChain((8, 8, 8)), "features.4.bias", shift), step=adam(1e-2))


def _saturated_bias(shift: float) -> Case:
    model = nets.fill(nets.Chain(6, act=nn.Tanh), nets.orthogonal())
    return on_digits(_shifted(model, "layers.4.bias", shift), step=adam())


def _hard(shift: float) -> Case:
    model = nets.fill(nets.Chain(4, act=nn.Hardsigmoid), nets.orthogonal(4.0))
    return on_digits(_shifted(model, "layers.2.bias", shift), step=adam())


def _binary(end: nn.Module, classes: int, scale: float = 1.0) -> Case:
    x, y = data.digits()
    target = (y % 2).float().unsqueeze(1)
    model = Ended(end, (64, classes))
    nets.scaled(model, "body.head.weight", scale)
    return supervised(model, x, target, F.binary_cross_entropy, adam())


def _twice_squashed(end: nn.Module) -> Case:
    x, y = data.digits()
    target = (y % 2).float().unsqueeze(1)
    compare = F.binary_cross_entropy_with_logits
    return supervised(Ended(end, (64, 1)), x, target, compare, adam())


def _dropped(p: float) -> Case:
    drop = nn.Dropout(p)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), drop, nn.Linear(64, 10))
    return on_digits(nets.fill(model, nets.he), step=adam())


PATIENTS: tuple[Patient, ...] = (
    sick(
        "dead-layer",
        "G301",
        "layers.8 layers.9",
        lambda: _dead_layer(-50.0),
        lambda: _dead_layer(0.0),
        "a bias of -50 keeps every ReLU of one layer shut",
    ),
    sick(
        "dead-channels",
        "G301",
        "features.12 features.13",
        lambda: _dead_channels(-50.0),
        lambda: _dead_channels(0.0),
        "95 % of the channels of one convolution are shut, gradients flow around them",
    ),
    sick(
        "dead-convolution",
        "G301",
        "features.4 features.5",
        lambda: _dead_block(-50.0),
        lambda: _dead_block(0.0),
        "the last convolution is shut: the classifier sees zeros",
    ),
    sick(
        "everything-dropped",
        "G303",
        "2",
        lambda: _dropped(1.0),
        lambda: _dropped(0.5),
        "torch's p is the share that is dropped, not the share that is kept",
    ),
    sick(
        "tanh-saturated-by-bias",
        "G302",
        "layers.4 layers.5",
        lambda: _saturated_bias(20.0),
        lambda: _saturated_bias(0.0),
        "a bias of 20 keeps every tanh of one layer at one",
    ),
    sick(
        "gates-shut",
        "G302",
        "gates squash",
        lambda: on_digits(Gated(-30.0), step=adam()),
        lambda: on_digits(Gated(0.0), step=adam()),
        "a bias of -30 shuts all sigmoid gates",
    ),
    sick(
        "hardsigmoid-at-its-end",
        "G302 G301",
        "layers.2 layers.3",
        lambda: _hard(20.0),
        lambda: _hard(0.0),
        "beyond 3 a hard sigmoid has no slope at all",
    ),
    sick(
        "softmax-over-one-unit",
        "G303",
        "end loss",
        lambda: _binary(nn.Softmax(-1), 1),
        lambda: _binary(nn.Sigmoid(), 1),
        "the softmax of one number is one: no gradient at all",
    ),
    sick(
        "softmax-before-cross-entropy",
        "G303",
        "end loss",
        lambda: on_digits(Ended(nn.Softmax(-1)), step=adam()),
        lambda: on_digits(Ended(nn.Identity()), step=adam()),
        "cross-entropy takes the softmax itself: the loss cannot fall below 1.46",
    ),
    sick(
        "sigmoid-before-bce-with-logits",
        "G303",
        "end loss",
        lambda: _twice_squashed(nn.Sigmoid()),
        lambda: _twice_squashed(nn.Identity()),
        "the loss takes the sigmoid itself",
    ),
    sick(
        "relu-before-cross-entropy",
        "G303 G301",
        "end loss body.head",
        lambda: on_digits(_shifted(Ended(nn.ReLU()), "body.head.bias", -20.0), step=adam()),
        lambda: on_digits(Ended(nn.Identity()), step=adam()),
        "all scores are shut by a last ReLU",
    ),
    sick(
        "tanh-at-the-end-of-a-regression",
        "G303 G602",
        "end loss target",
        lambda: on_table(Ended(nn.Tanh(), (12, 1)), lambda a, b: F.mse_loss(a, 40 + 20 * b)),
        lambda: on_table(Ended(nn.Identity(), (12, 1)), lambda a, b: F.mse_loss(a, b)),
        "targets from 0 to 80 cannot be reached by a tanh",
    ),
    sick(
        "sigmoid-of-hundreds",
        "G302 G303",
        "end body.head body",
        lambda: _binary(nn.Sigmoid(), 1, 3000.0),
        lambda: _binary(nn.Sigmoid(), 1),
        "the sigmoid of hundreds is exactly 0 or 1 and its gradient exactly 0",
    ),
)
