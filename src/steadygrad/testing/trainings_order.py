"""Trainings whose loop is wrong: the order of calls, what is trained, and what has a gradient."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 as everybody writes it
from torch.optim import SGD, Adam, Optimizer
from torch.utils.checkpoint import checkpoint

from steadygrad.testing import data, nets
from steadygrad.testing.training_case import Training, fit, ill

Cleared = Literal["never", "before backward"]


def _cleared(when: Cleared) -> nn.Module:
    model = nets.Chain(3)
    optimizer = SGD(model.parameters(), lr=0.1)
    for _ in range(60):
        x, y = data.digits(32)
        loss = F.cross_entropy(model(x), y)
        if when == "before backward":
            optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def _clipped(after: bool) -> nn.Module:
    model = nets.Chain(3)
    optimizer = SGD(model.parameters(), lr=0.1)
    for _ in range(60):
        x, y = data.digits(32)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        if after:
            optimizer.step()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if not after:
            optimizer.step()
    return model


def _classified(
    model: nn.Module,
    optimizer: Optimizer,
    steps: int = 60,
    compare: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> nn.Module:
    def loss_of(_step: int) -> Tensor:
        x, y = data.digits(32)
        return compare(model(x), y)

    return fit(model, optimizer, loss_of, steps)


def _new_head(late: bool) -> nn.Module:
    """A head for ten classes that takes the place of another, before the optimizer or after."""
    model = nets.Chain(3, sizes=(64, 100))
    optimizer = Adam(model.parameters())
    model.head = nn.Linear(64, 10)
    if not late:
        optimizer = Adam(model.parameters())
    return _classified(model, optimizer)


class TwoParts(nn.Module):
    """An encoder and a head, between which the graph may be cut."""

    def __init__(self, cut: bool) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.head = nn.Linear(32, 10)
        self.cut = cut

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores [batch, classes]."""
        h = self.encoder(x)
        scores: Tensor = self.head(h.detach() if self.cut else h)
        return scores


def _cut(cut: bool) -> nn.Module:
    model = TwoParts(cut)
    return _classified(model, Adam(model.parameters()))


def _frozen(frozen: bool) -> nn.Module:
    """Inputs want a gradient, as checkpointing asks for, so that nothing raises."""
    model = nets.Chain(3).requires_grad_(not frozen)
    optimizer = SGD(model.parameters(), lr=0.1)

    def loss_of(_step: int) -> Tensor:
        x, y = data.digits(32)
        return F.cross_entropy(model(x.requires_grad_()), y)

    return fit(model, optimizer, loss_of)


def _hard(hard: bool) -> nn.Module:
    """Compare the chosen class, which has no gradient; `requires_grad_` silences the error."""

    def compare(out: Tensor, y: Tensor) -> Tensor:
        if hard:
            return F.mse_loss(out.argmax(-1).float(), y.float()).requires_grad_()
        return F.cross_entropy(out, y)

    model = nets.Chain(3)
    return _classified(model, Adam(model.parameters()), compare=compare)


class Recomputed(nn.Module):
    """A part that is computed again in the backward pass, to save memory."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.head = nn.Linear(32, 10)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores [batch, classes]."""
        scores: Tensor = self.head(checkpoint(self.body, x, use_reentrant=self.reentrant))
        return scores


def _recomputed(reentrant: bool) -> nn.Module:
    model = Recomputed(reentrant)
    return _classified(model, Adam(model.parameters()))


def _adapted(a_is_zero: bool) -> nn.Module:
    model = nets.adapted(a_is_zero)
    optimizer = Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    return _classified(model, optimizer)


def _zero_gated(zero: bool) -> nn.Module:
    """A layer without weights before a ReLU: its slope at zero is zero."""
    model = nets.Chain(3)
    nets.fill(model.layers, nn.init.zeros_ if zero else nets.he)
    return _classified(model, Adam(model.parameters()))


def _squeezed(last: nn.Module) -> nn.Module:
    """Cross-entropy takes the softmax of what a softmax, or a log_softmax, has put out."""
    model = nn.Sequential(nets.Chain(3), last)
    return _classified(model, SGD(model.parameters(), lr=0.1), 200)


def _unregistered(registered: bool) -> nn.Module:
    """Two optimizers for two parts, or one of them forgotten."""
    encoder, head = nn.Sequential(nn.Linear(64, 32), nn.ReLU()), nn.Linear(32, 10)
    model = nn.Sequential(encoder, head)
    optimizers = [Adam(encoder.parameters())]
    if registered:
        optimizers.append(Adam(head.parameters()))
    for _ in range(60):
        x, y = data.digits(32)
        for one in optimizers:
            one.zero_grad()
        F.cross_entropy(model(x), y).backward()
        for one in optimizers:
            one.step()
    return model


def _over(axis: int) -> nn.Module:
    """Logarithms of shares, of the batch or of the classes."""
    model = nets.Chain(3)
    compare = partial(_likelihood, axis)
    return _classified(model, Adam(model.parameters()), 150, compare)


def _likelihood(axis: int, out: Tensor, y: Tensor) -> Tensor:
    return F.nll_loss(F.log_softmax(out, axis), y)


def _against(fits: bool) -> nn.Module:
    """Predictions [batch, 1] against targets [batch]."""
    model = nets.Chain(3, sizes=(12, 1))
    optimizer = Adam(model.parameters(), lr=1e-2)

    def loss_of(_step: int) -> Tensor:
        x, y = data.table(64)
        loss: Tensor = (model(x) - (y if fits else y[:, 0])).square().mean()
        return loss

    return fit(model, optimizer, loss_of, 200)


def _penalized(squeezed: bool) -> nn.Module:
    """Cross-entropy and a penalty on the weights."""
    model = nets.Chain(3)
    optimizer = Adam(model.parameters(), lr=1e-3)

    def loss_of(_step: int) -> Tensor:
        x, y = data.digits(32)
        scores = model(x)
        penalty = torch.stack([p.square().sum() for p in model.parameters()]).sum()
        return F.cross_entropy(scores.softmax(-1) if squeezed else scores, y) + 1e-4 * penalty

    return fit(model, optimizer, loss_of, 100)


TRAININGS: tuple[Training, ...] = (
    ill(
        "zero-grad-forgotten",
        "G404",
        "optimizer",
        partial(_cleared, "never"),
        partial(_cleared, "before backward"),
        "each step follows the sum of all gradients so far",
    ),
    ill(
        "clip-after-the-step",
        "G408",
        "optimizer",
        partial(_clipped, True),
        partial(_clipped, False),
        "what is clipped has been used already",
    ),
    ill(
        "head-not-in-optimizer",
        "G502",
        "head",
        partial(_new_head, True),
        partial(_new_head, False),
        "the head was replaced after the optimizer was made",
    ),
    ill(
        "second-optimizer-forgotten",
        "G502",
        "1",
        partial(_unregistered, False),
        partial(_unregistered, True),
        "the head gets gradients, and nobody steps it",
    ),
    ill(
        "detached-encoder",
        "G501",
        "encoder",
        partial(_cut, True),
        partial(_cut, False),
        "the graph is cut behind the encoder",
    ),
    ill(
        "everything-frozen",
        "G501",
        "optimizer",
        partial(_frozen, True),
        partial(_frozen, False),
        "no parameter wants a gradient, and nothing raises",
    ),
    ill(
        "argmax-in-the-loss",
        "G501",
        "optimizer loss",
        partial(_hard, True),
        partial(_hard, False),
        "a choice has no gradient",
    ),
    ill(
        "checkpoint-without-gradient",
        "G501",
        "body",
        partial(_recomputed, True),
        partial(_recomputed, False),
        "a reentrant checkpoint of inputs without a gradient gives none to its layers",
    ),
    ill(
        "lora-both-zero",
        "G501",
        "lora_a lora_b layers optimizer 0 1 2",
        partial(_adapted, True),
        partial(_adapted, False),
        "both factors are zero, so that neither has a gradient, ever",
    ),
    ill(
        "zero-before-relu",
        "G501 G301 G203",
        "layers head",
        partial(_zero_gated, True),
        partial(_zero_gated, False),
        "a ReLU has no slope at zero",
    ),
    ill(
        "softmax-twice",
        "G303 G605 G411",
        "1 loss 0",
        partial(_squeezed, nn.Softmax(-1)),
        partial(_squeezed, nn.LogSoftmax(-1)),
        "a softmax of probabilities: the loss can't go below 1.46, and gradients are a tenth",
    ),
    ill(
        "softmax-over-the-batch",
        "G305",
        "loss",
        partial(_over, 0),
        partial(_over, 1),
        "samples compete with each other instead of classes",
    ),
    ill(
        "broadcast-target",
        "G607",
        "loss target",
        partial(_against, False),
        partial(_against, True),
        "every prediction is compared with every target",
    ),
    ill(
        "softmax-twice-in-a-sum",
        "G303",
        "loss",
        partial(_penalized, True),
        partial(_penalized, False),
        "the same, where the loss is a sum",
    ),
)
