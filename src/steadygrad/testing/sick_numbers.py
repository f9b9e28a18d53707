"""Patients with broken numbers: NaN, infinity, and what half precision cannot hold."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 as everybody writes it

from steadygrad.testing import data, nets
from steadygrad.testing.case import Case, Patient, sick
from steadygrad.testing.setup import adam, on_digits, on_images, on_table, sgd, supervised


class Head(nn.Module):
    """A small body and an operation of the user's own on what comes out."""

    def __init__(self, out: Callable[[Tensor], Tensor], sizes: tuple[int, int] = (64, 10)) -> None:
        super().__init__()
        self.body = nets.Chain(3, 32, sizes=sizes)
        self.out = Op(out)

    def forward(self, x: Tensor) -> Tensor:
        """Return the user's operation on the body's output."""
        result: Tensor = self.out(self.body(x))
        return result


class Op(nn.Module):
    """An operation of the user's own as a module."""

    def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        """Return operation(x)."""
        return self.operation(x)


class Padded(nn.Module):
    """Attention over eight tokens where a sample may be padding throughout."""

    def __init__(self, padded_samples: int) -> None:
        super().__init__()
        self.embedding = nn.Linear(8, 32)
        self.attention = nets.Attention(32)
        self.head = nn.Linear(32, 10)
        self.padded_samples = padded_samples

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores [batch, classes]."""
        mask = x.new_zeros(len(x), 1, 1, 8)
        mask[:, ..., 6:] = -math.inf
        mask[: self.padded_samples] = -math.inf
        h = self.attention(self.embedding(x.reshape(-1, 8, 8)), mask)
        scores: Tensor = self.head(h.mean(1))
        return scores


class Distance(nn.Module):
    """Distances to learned prototypes, of which one is a sample itself."""

    def __init__(self, eps: float = 0.0) -> None:
        super().__init__()
        self.body = nn.Linear(64, 16, bias=False)
        self.norm = Op(lambda h: (h.square().sum(-1, keepdim=True) + eps).sqrt())
        self.head = nn.Linear(17, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores [batch, classes]."""
        h = self.body(x)
        scores: Tensor = self.head(torch.cat([h, self.norm(h)], -1))
        return scores


class Half(nn.Module):
    """Two residual feed-forward layers that run in half precision, with a wide middle."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.stem = nn.Linear(64, 64)
        self.wi = nn.Linear(64, 128)
        self.wo = nn.Linear(128, 64)
        self.norm = nn.LayerNorm(64)
        self.head = nn.Linear(64, 10)
        nets.fill(self, nets.he)
        nets.scaled(self, "wi.weight", factor)
        nets.scaled(self, "wo.weight", factor)
        self.half()

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores [batch, classes] in float32."""
        h = F.relu(self.stem(x.half()))
        h = h + self.wo(F.relu(self.wi(h)))
        scores: Tensor = self.head(self.norm(h)).float()
        return scores


def _with_bad_pixel(value: float, as_images: bool) -> Case:
    x, y = data.images() if as_images else data.digits()
    if not math.isfinite(value):
        x.view(len(x), -1)[5, 17] = value
    model = nets.vgg10() if as_images else nets.Chain(4)
    return supervised(model, x, y, step=adam())


def _bad_target(value: float) -> Case:
    x, y = data.table()
    if not math.isfinite(value):
        y[3] = value
    return supervised(nets.Chain(4, sizes=(12, 1)), x, y, F.mse_loss, adam())


def _bad_weight(value: float) -> Case:
    model = nets.vgg10()
    if not math.isfinite(value):
        with torch.no_grad():
            model.get_parameter("features.5.weight")[0, 0, 0, 0] = value
    return on_images(model, step=adam())


def _bad_buffer(value: float) -> Case:
    model = nets.ResNet20()
    if not math.isfinite(value):
        model.get_buffer("blocks.4.bn1.running_mean")[2] = value
    return on_images(model, step=adam())


def _log_softmax_by_hand(scale: float) -> Case:
    model = Head(lambda h: torch.log(torch.softmax(scale * h, -1)))
    return on_digits(model, F.nll_loss, adam())


def _log_of_probabilities(eps: float) -> Case:
    def compare(scores: Tensor, y: Tensor) -> Tensor:
        hot = F.one_hot(y, 10).float()
        return -(hot * (F.hardtanh(scores, 0.0, 1.0) + eps).log()).sum(-1).mean()

    return on_digits(nets.Chain(3), compare, adam())


def _negative_variance(safe: bool) -> Case:
    def compare(out: Tensor, y: Tensor) -> Tensor:
        mean, spread = out.chunk(2, -1)
        variance = F.softplus(spread) + 1e-3 if safe else spread
        return (0.5 * variance.log() + (y - mean).square() / (2 * variance)).mean()

    return on_table(nets.Chain(3, sizes=(12, 2)), compare, adam())


def _blank_samples(eps: float) -> Case:
    x, y = data.digits()
    x[:3] = 0.0
    return supervised(Distance(eps), x, y, step=adam())


def _where_after_root(safe: bool) -> Case:
    def root(h: Tensor) -> Tensor:
        inside = torch.where(h > 0, h, torch.ones_like(h)) if safe else h
        return torch.where(h > 0, inside.sqrt(), h)

    return on_digits(Head(root), step=adam())


def _angle(limit: float) -> Case:
    def compare(out: Tensor, y: Tensor) -> Tensor:
        cosine = F.cosine_similarity(out, out.detach(), dim=-1).clamp(-limit, limit)
        return cosine.acos().mean() + F.cross_entropy(out, y)

    return on_digits(nets.Chain(3), compare, adam())


def _half(factor: float, eps: float = 1e-4) -> Case:
    return on_digits(Half(factor), step=adam(eps=eps))


def _one_sample_standardized(count: int) -> Case:
    def compare(out: Tensor, returns: Tensor) -> Tensor:
        centered = returns - returns.mean()
        variance = centered.square().sum() / (len(returns) - 1)
        advantage = centered / variance.sqrt()
        return -(F.logsigmoid(out) * advantage).mean()

    x, _ = data.table(count)
    returns = torch.randn_like(x[:, :1])
    return supervised(nets.Chain(3, sizes=(12, 1)), x, returns, compare, adam())


def _huge_returns(size: float) -> Case:
    def compare(out: Tensor, y: Tensor) -> Tensor:
        returns = size * (y.float() - 4.5)
        return -(out.log_softmax(-1)[torch.arange(len(y)), y] * returns).mean()

    return on_digits(nets.Chain(3), compare, sgd(1e-3))


def _class_weights(absent: bool) -> Case:
    weight = torch.ones(10)
    if absent:
        weight[3] = math.inf

    def compare(out: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(out, y, weight, label_smoothing=0.1)

    return on_digits(nets.Chain(3), compare, adam())


def _masked_scores(own: bool) -> Case:
    def compare(out: Tensor, y: Tensor) -> Tensor:
        mask = F.one_hot((y + (0 if own else 1)) % 10, 10).bool()
        mask[1:] = False
        return F.cross_entropy(out.masked_fill(mask, -math.inf), y)

    return on_digits(nets.Chain(3), compare, adam())


class Pooled(nn.Module):
    """The mean over those of eight tokens that a mask leaves."""

    def __init__(self, empty_samples: int) -> None:
        super().__init__()
        self.embedding = nn.Linear(8, 32)
        self.head = nn.Linear(32, 10)
        self.empty_samples = empty_samples

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores [batch, classes]."""
        mask = x.new_ones(len(x), 8, 1)
        mask[: self.empty_samples] = 0.0
        h = self.embedding(x.reshape(-1, 8, 8))
        scores: Tensor = self.head((h * mask).sum(1) / mask.sum(1))
        return scores


PATIENTS: tuple[Patient, ...] = (
    sick(
        "infinity-in-data",
        "G001",
        "data",
        lambda: _with_bad_pixel(math.inf, False),
        lambda: _with_bad_pixel(0.0, False),
        "one feature of one sample is infinite",
    ),
    sick(
        "nan-in-an-image",
        "G001",
        "data",
        lambda: _with_bad_pixel(math.nan, True),
        lambda: _with_bad_pixel(0.0, True),
        "one pixel of one image is NaN",
    ),
    sick(
        "nan-in-target",
        "G001",
        "data target",
        lambda: _bad_target(math.nan),
        lambda: _bad_target(0.0),
        "one of 128 targets is NaN",
    ),
    sick(
        "nan-in-weight",
        "G002",
        "features.5",
        lambda: _bad_weight(math.nan),
        lambda: _bad_weight(0.0),
        "one number of one kernel is NaN",
    ),
    sick(
        "log-softmax-by-hand",
        "G002 G004",
        "out",
        lambda: _log_softmax_by_hand(2000.0),
        lambda: _log_softmax_by_hand(1.0),
        "softmax underflows to zero, log makes it minus infinity",
    ),
    sick(
        "attention-row-fully-masked",
        "G002",
        "attention",
        lambda: on_digits(Padded(2), step=adam()),
        lambda: on_digits(Padded(0), step=adam()),
        "two samples are padding throughout: softmax over nothing (pytorch#41508)",
    ),
    sick(
        "log-of-zero-probability",
        "G003",
        "loss",
        lambda: _log_of_probabilities(0.0),
        lambda: _log_of_probabilities(0.1),
        "cross-entropy by hand on scores cut off at zero",
    ),
    sick(
        "negative-variance",
        "G003",
        "loss",
        lambda: _negative_variance(False),
        lambda: _negative_variance(True),
        "the log of a predicted variance that nothing keeps positive",
    ),
    sick(
        "root-at-zero",
        "G004",
        "norm",
        lambda: _blank_samples(0.0),
        lambda: _blank_samples(1e-6),
        "the slope of a square root at zero is infinite, the value is not",
    ),
    sick(
        "where-after-root",
        "G004",
        "out",
        lambda: _where_after_root(False),
        lambda: _where_after_root(True),
        "where hides the root of negatives from the value, not from the gradient (pytorch#68425)",
    ),
    sick(
        "angle-to-itself",
        "G004",
        "loss",
        lambda: _angle(1.0),
        lambda: _angle(1 - 1e-6),
        "the slope of acos at one is infinite",
    ),
    sick(
        "adam-eps-below-half-precision",
        "G005",
        "optimizer",
        lambda: _half(1.0, 1e-8),
        lambda: _half(1.0, 1e-4),
        "eps 1e-8 is zero in float16: zero by zero where the gradient is small",
    ),
    sick(
        "returns-of-1e21",
        "G006",
        "loss target optimizer body head layers",
        lambda: _huge_returns(1e21),
        lambda: _huge_returns(1.0),
        "every gradient is finite, the square of their norm is not",
    ),
    sick(
        "half-precision-feed-forward-overflows",
        "G007",
        "wo wi",
        lambda: _half(250.0),
        lambda: _half(1.0),
        "the output of wo exceeds 65504 (T5, transformers#5651)",
    ),
    sick(
        "half-precision-without-headroom",
        "G007 G202",
        "wo wi",
        lambda: _half(95.0),
        lambda: _half(1.0),
        "the largest activation is near 65504: the next batch overflows",
    ),
    sick(
        "infinite-running-mean",
        "G009",
        "blocks.4.bn1",
        lambda: _bad_buffer(math.inf),
        lambda: _bad_buffer(0.0),
        "a batch norm remembers one infinite batch: training looks fine, evaluation is NaN",
    ),
    sick(
        "one-sample-standardized",
        "G606 G003",
        "loss target data",
        lambda: _one_sample_standardized(1),
        lambda: _one_sample_standardized(64),
        "the standard deviation of one sample is NaN",
    ),
    sick(
        "mean-over-nothing",
        "G002",
        "data",
        lambda: on_digits(Pooled(2), step=adam()),
        lambda: on_digits(Pooled(0), step=adam()),
        "the mask of two samples is all zero: their mean is 0 / 0",
    ),
    sick(
        "infinite-class-weight",
        "G003",
        "loss",
        lambda: _class_weights(True),
        lambda: _class_weights(False),
        "the weight of an absent class is 1 / 0",
    ),
    sick(
        "label-masked-out",
        "G003",
        "loss",
        lambda: _masked_scores(True),
        lambda: _masked_scores(False),
        "the mask puts minus infinity on the score of one sample's own label",
    ),
)
