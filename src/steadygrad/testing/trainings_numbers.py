"""Trainings in which a number becomes infinite or NaN, in one batch or after a while."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 as everybody writes it
from torch.optim import SGD, Adam

from steadygrad.testing import data, nets
from steadygrad.testing.training_case import Training, fit, ill

BAD = 25  # the step whose batch is bad
Compare = Callable[[Tensor, Tensor], Tensor]
Change = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def _unchanged(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return x, y


def _digits(
    change: Change, compare: Compare = F.cross_entropy, net: nn.Module | None = None
) -> nn.Module:
    """Classify digits; one batch is changed."""
    model = net or nets.Chain(3)
    optimizer = Adam(model.parameters(), lr=1e-3)

    def loss_of(step: int) -> Tensor:
        x, y = data.digits(32)
        x, y = change(x, y) if step == BAD else (x, y)
        return compare(model(x), y)

    return fit(model, optimizer, loss_of)


def _table(model: nn.Module, compare: Compare, change: Change, lr: float = 0.05) -> nn.Module:
    """Regress a target on a table; one batch is changed."""
    optimizer = SGD(model.parameters(), lr=lr)

    def loss_of(step: int) -> Tensor:
        x, y = data.table(64)
        x, y = change(x, y) if step == BAD else (x, y)
        return compare(model(x), y)

    return fit(model, optimizer, loss_of)


# --- Data and labels ------------------------------------------------------------------------------


def _broken_pixel(cleaned: bool) -> nn.Module:
    def change(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x[3, 17] = torch.nan
        return (x.nan_to_num(), y) if cleaned else (x, y)

    return _digits(change)


def _ignored(count: int) -> nn.Module:
    def change(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        y[:count] = -100
        return x, y

    return _digits(change)


def _without_weight(weightless: bool) -> nn.Module:
    """Classes that are padding have a weight of zero; one batch has no other."""
    weight = torch.ones(10)
    weight[0] = 0.0

    def change(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return (x, torch.zeros_like(y)) if weightless else (x, y)

    return _digits(change, lambda out, y: F.cross_entropy(out, y, weight=weight))


def _nothing_masked_in(least: float) -> nn.Module:
    """A mean over what is masked in, written by hand; class 10 is "nothing here"."""

    def compare(out: Tensor, y: Tensor) -> Tensor:
        mask = (y != 10).float()
        each = F.cross_entropy(out, y.clamp(max=9), reduction="none")
        return (each * mask).sum() / mask.sum().clamp(min=least)

    return _digits(lambda x, y: (x, torch.full_like(y, 10)), compare)


def _label(label: int) -> nn.Module:
    def change(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        y[5] = label
        return x, y

    return _digits(change)


def _raw_mask(divided: bool) -> nn.Module:
    """A mask of 0 and 255, as image files have it, where 0 and 1 are expected."""
    model = nets.Chain(3, sizes=(64, 64))
    optimizer = SGD(model.parameters(), lr=0.1)

    def loss_of(_step: int) -> Tensor:
        x, _ = data.digits(32)
        mask = 255.0 * (x > 0)
        return F.binary_cross_entropy_with_logits(model(x), mask / 255 if divided else mask)

    return fit(model, optimizer, loss_of)


# --- Singular mathematics -------------------------------------------------------------------------


def _distances(first: Tensor, masked_first: bool) -> Tensor:
    squares = (first[:, None] - first[None]).square().sum(-1)
    if masked_first:
        far = squares > 0
        return torch.where(far, torch.where(far, squares, torch.ones_like(squares)).sqrt(), 0.0)
    return torch.where(squares > 0, squares.sqrt(), 0.0)


def _embedded(masked_first: bool) -> nn.Module:
    """Digits embedded so that distances say which are alike; the diagonal is zero."""
    model = nets.Chain(2, sizes=(64, 8))
    optimizer = Adam(model.parameters(), lr=1e-3)

    def loss_of(_step: int) -> Tensor:
        x, y = data.digits(32)
        alike = (y[:, None] == y[None]).float()
        distance = _distances(model(x), masked_first)
        return (alike * distance + (1 - alike) * F.relu(2 - distance)).mean()

    return fit(model, optimizer, loss_of)


class Gains(nn.Module):
    """A gain for each feature: its root is taken, so that it must not be negative."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(32))
        self.eps = eps
        with torch.no_grad():
            self.gain[7] = 0.0  # pruned

    def forward(self, x: Tensor) -> Tensor:
        """Return features [batch, 32] times the roots of their gains."""
        return x * (self.gain + self.eps).sqrt()


def _clipped_root(eps: float, max_norm: float) -> nn.Module:
    """One infinite element of a gradient, which clipping spreads to all."""
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), Gains(eps), nn.Linear(32, 10))
    optimizer = SGD(model.parameters(), lr=0.01)

    def loss_of(_step: int) -> Tensor:
        x, y = data.digits(32)
        return F.cross_entropy(model(x), y)

    def clip(_step: int) -> None:
        nn.utils.clip_grad_norm_(model.parameters(), max_norm)

    return fit(model, optimizer, loss_of, before_step=clip)


class Reader(nn.Module):
    """Attention over tokens, and a class from the tokens that are there."""

    def __init__(self, fill: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        self.attention = nets.Attention(32)
        self.head = nn.Linear(32, 10)
        self.fill = fill

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        """Return class scores [documents with a token, classes]."""
        mask = torch.zeros(there.shape).masked_fill(~there, self.fill)
        h = self.attention(self.embedding(x), mask[:, None, None])
        some = there.any(1)
        weight = (there.float() / there.sum(1, keepdim=True).clamp(min=1))[some]
        scores: Tensor = self.head((h[some] * weight[..., None]).sum(1))
        return scores


def _empty_document(fill: float) -> nn.Module:
    """A document without a token: its row of the softmax is masked throughout, and left out."""
    model = Reader(fill)
    optimizer = Adam(model.parameters(), lr=1e-3)

    def loss_of(step: int) -> Tensor:
        x, _ = data.tokens(16, 12)
        there = torch.arange(12) < torch.randint(3, 13, (16, 1))
        if step == BAD:
            there[4] = False
        return F.cross_entropy(model(x, there), x[:, 0][there.any(1)] % 10)

    return fit(model, optimizer, loss_of)


class Rate(nn.Module):
    """A rate that is the exponential, or the softplus, of what a small network puts out."""

    def __init__(self, rate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body = nets.Chain(2, 32, sizes=(12, 1))
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Return rates [batch, 1]."""
        return self.rate(self.body(x))


def _counted(rate: Callable[[Tensor], Tensor]) -> nn.Module:
    """A sensor that once measures a thousand times too much, and an exponential behind it."""

    def compare(out: Tensor, y: Tensor) -> Tensor:
        return F.poisson_nll_loss(out, (y.abs() * 3).round(), log_input=False)

    def change(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x[:32] *= 1000.0
        return x, y

    return _table(Rate(rate), compare, change, 1e-3)


def _likelihood(log: Callable[[Tensor], Tensor]) -> nn.Module:
    """Logs of probabilities; one outlier is so sure of the wrong class that it underflows."""

    def change(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x[:2] *= 1000.0
        return x, y

    return _digits(change, lambda out, y: F.nll_loss(log(out), y))


class Embedder(nn.Module):
    """An image embedded, normalized, and compared with class vectors; all biases are zero."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 32), nn.ReLU())
        self.project = nn.Linear(32, 16)
        self.classes = nn.Parameter(torch.randn(10, 16))
        self.eps = eps
        nets.fill(self, nets.he)

    def forward(self, x: Tensor) -> Tensor:
        """Return ten times the cosines [batch, classes]."""
        h = F.normalize(self.project(self.body(x)), dim=-1, eps=self.eps)
        cosines: Tensor = h @ F.normalize(self.classes, dim=-1).T
        return 10 * cosines


def _blank(eps: float) -> nn.Module:
    """A blank image in each batch: its embedding is zero, and is divided by its norm."""
    model = Embedder(eps)
    optimizer = SGD(model.parameters(), lr=0.05)

    def loss_of(_step: int) -> Tensor:
        x, y = data.digits(32)
        x[2] = 0.0
        return F.cross_entropy(model(x), y)

    return fit(model, optimizer, loss_of, 400)


def _timestamps(scaled: bool) -> nn.Module:
    """Nanoseconds since 1970 as a target: gradients are finite, the sum of their squares is not."""
    model = nets.Chain(3, sizes=(12, 1))
    optimizer = SGD(model.parameters(), lr=0.05)

    def loss_of(_step: int) -> Tensor:
        x, y = data.table(64)
        return F.mse_loss(model(x), y if scaled else 1.7e18 + 1e15 * y)

    def clip(_step: int) -> None:
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)

    return fit(model, optimizer, loss_of, before_step=clip)


# --- NaN in disguise ------------------------------------------------------------------------------


class Standard(nn.Module):
    """Standardize observations one by one, as many policies do."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Return observations [batch, columns] with mean 0 and deviation 1."""
        x = x - x.mean(1, keepdim=True)
        return x / (x.square().mean(1, keepdim=True).sqrt() + self.eps)


def _policy(eps: float, out: int) -> nn.Module:
    return nn.Sequential(Standard(eps), nets.Chain(2, 32, sizes=(12, out)))


def _observed(step: int) -> Tensor:
    x, _ = data.table(32)
    if step == BAD:
        x[6] = 0.0  # a sensor that was off
    return x


def _sampled(eps: float) -> nn.Module:
    """A policy over four actions; `multinomial` raises at a NaN."""
    model = _policy(eps, 4)
    optimizer = Adam(model.parameters(), lr=1e-3)

    def loss_of(step: int) -> Tensor:
        x = _observed(step)
        log = model(x).log_softmax(-1)
        action = torch.multinomial(log.exp(), 1)
        reward = (action == (x[:, :1] > 0)).float()
        gain: Tensor = reward * log.gather(1, action)
        return -gain.mean()

    return fit(model, optimizer, loss_of)


def _gaussian(eps: float) -> nn.Module:
    """A policy over one continuous action; `Normal` raises at a NaN."""
    model = _policy(eps, 2)
    optimizer = Adam(model.parameters(), lr=1e-3)

    def loss_of(step: int) -> Tensor:
        x = _observed(step)
        mean, spread = model(x).unbind(1)
        policy = torch.distributions.Normal(mean, F.softplus(spread) + 0.1, validate_args=True)
        action = policy.sample()
        reward = -(action - x[:, 0]).square()
        loss: Tensor = -(policy.log_prob(action) * (reward - reward.mean())).mean()
        return loss

    return fit(model, optimizer, loss_of)


TRAININGS: tuple[Training, ...] = (
    ill(
        "one-nan-pixel",
        "G001",
        "data",
        partial(_broken_pixel, False),
        partial(_broken_pixel, True),
        "one pixel of one batch is NaN",
    ),
    ill(
        "all-labels-ignored",
        "G604",
        "data target loss",
        partial(_ignored, 32),
        partial(_ignored, 20),
        "every label of one batch is -100: the loss is NaN, the gradient zero",
    ),
    ill(
        "all-classes-weightless",
        "G604",
        "data target loss",
        partial(_without_weight, True),
        partial(_without_weight, False),
        "every label of one batch has the weight zero: 0 / 0, and a gradient of NaN",
    ),
    ill(
        "nothing-masked-in",
        "G604 G003 G002",
        "data target loss",
        partial(_nothing_masked_in, 0.0),
        partial(_nothing_masked_in, 1.0),
        "a count of zero divides a sum of zero",
    ),
    replace(
        ill(
            "label-out-of-range",
            "G603",
            "data target loss",
            partial(_label, 10),
            partial(_label, 9),
            "ten classes, and one label of 10",
        ),
        raises=(IndexError,),
    ),
    ill(
        "raw-mask",
        "G603",
        "data target loss",
        partial(_raw_mask, False),
        partial(_raw_mask, True),
        "binary cross-entropy against 255 falls for ever, below zero",
    ),
    ill(
        "masked-root",
        "G004",
        "loss data",
        partial(_embedded, False),
        partial(_embedded, True),
        "where() hides the root of zero and not its slope",
    ),
    ill(
        "infinite-slope-clipped",
        "G004",
        "2",
        partial(_clipped_root, 0.0, 1.0),
        partial(_clipped_root, 0.5, 1.0),
        "one element of one gradient is infinite, then clipping makes all of them zero or NaN",
    ),
    ill(
        "infinite-slope-logged",
        "G004",
        "2",
        partial(_clipped_root, 0.0, torch.inf),
        partial(_clipped_root, 0.5, torch.inf),
        "clipping with max_norm=inf, to log the norm, spreads one infinite element to all",
    ),
    ill(
        "empty-document",
        "G004 G002",
        "attention data",
        partial(_empty_document, -torch.inf),
        partial(_empty_document, torch.finfo(torch.float32).min),
        "a softmax over a row that is masked throughout; its output is left out",
    ),
    ill(
        "late-exponential",
        "G605 G002",
        "body data loss",
        partial(_counted, torch.exp),
        partial(_counted, F.softplus),
        "exp of more than 88 is infinite",
    ),
    ill(
        "late-log-of-zero",
        "G003 G002 G004",
        "loss head",
        partial(_likelihood, lambda out: out.softmax(-1).log()),
        partial(_likelihood, lambda out: out.log_softmax(-1)),
        "a probability underflows to zero, and its log is infinite",
    ),
    ill(
        "blank-image",
        "G606 G108 G101 G412",
        "optimizer project body data",
        partial(_blank, 1e-12),
        partial(_blank, 1.0),
        "a norm of zero divides the gradient: finite, and 1e11 times too large",
    ),
    ill(
        "nanoseconds-as-target",
        "G006 G602",
        "target loss head",
        partial(_timestamps, False),
        partial(_timestamps, True),
        "all gradients are finite and their norm is not: clipping sets them to zero",
    ),
    replace(
        ill(
            "multinomial-of-nan",
            "G002 G004",
            "0 data",
            partial(_sampled, 0.0),
            partial(_sampled, 1e-3),
            "0 / 0 in the model; what raises is multinomial",
        ),
        raises=(RuntimeError,),
    ),
    replace(
        ill(
            "normal-of-nan",
            "G002 G004",
            "0 data",
            partial(_gaussian, 0.0),
            partial(_gaussian, 1e-3),
            "0 / 0 in the model; what raises is torch.distributions",
        ),
        raises=(ValueError,),
    ),
)
