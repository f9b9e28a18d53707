"""Trainings in half precision: overflow, loss scales, and updates that are rounded away."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 as everybody writes it
from torch.optim import SGD, Adam, AdamW

from steadygrad.testing import data, nets
from steadygrad.testing.training_case import Training, fit, ill

Guard = Callable[[nn.Module], None]
Clip = Literal["before unscale_", "after unscale_", "by value before unscale_"]


class Residual(nn.Module):
    """A residual branch, and the norm behind it that turns an infinity into NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(64, 32)
        self.up = nn.Linear(32, 64)
        self.down = nn.Linear(64, 32)
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores [batch, classes]."""
        x = self.stem(x)
        scores: Tensor = self.head(self.norm(x + self.down(self.up(x).relu().square())))
        return scores


def _residual(dtype: torch.dtype) -> nn.Module:
    """Weights and numbers in one half precision; one batch is a hundred times larger."""
    model = Residual().to(dtype)
    optimizer = SGD(model.parameters(), lr=0.01)

    def loss_of(step: int) -> Tensor:
        x, y = data.digits(32)
        x = 500 * x if step == 25 else x
        return F.cross_entropy(model(x.to(dtype)).float(), y)

    return fit(model, optimizer, loss_of)


def _in_dtype(
    dtype: torch.dtype, lr: float, eps: float = 1e-8, steps: int = 60, gain: float = 1.0
) -> nn.Module:
    """Weights, gradients, and Adam's moments in one precision."""
    model = nets.Chain(3).to(dtype)
    optimizer = AdamW(model.parameters(), lr=lr, eps=eps)
    x, y = data.digits(256)

    def loss_of(step: int) -> Tensor:
        part = slice(32 * (step % 8), 32 * (step % 8) + 32)
        return F.cross_entropy(gain * model(x[part].to(dtype)).float(), y[part])

    return fit(model, optimizer, loss_of, steps)


def _scaled(
    *,
    scale: float = 2.0**10,
    guard: Guard | None = None,
    clip: Clip | None = None,
    overflows: Callable[[int], bool] = lambda _step: False,
    steps: int = 60,
) -> nn.Module:
    """Train under float16 autocast and a GradScaler, as the examples of torch do."""
    model = Residual()
    optimizer = SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    for step in range(steps):
        x, y = data.digits(32)
        x = 500 * x if overflows(step) else x
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = F.cross_entropy(model(x).float(), y)
        scaler.scale(loss).backward()
        if guard is not None:
            guard(model)
        if clip == "after unscale_":
            scaler.unscale_(optimizer)
        if clip == "by value before unscale_":
            nn.utils.clip_grad_value_(model.parameters(), 1.0)
        elif clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
    return model


def _zeroed(model: nn.Module) -> None:
    """Set all gradients to zero when one is not finite: the scaler never learns of it."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if not all(bool(one.isfinite().all()) for one in gradients):
        for one in gradients:
            one.zero_()


class Normed(nn.Module):
    """Batch norm between linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(64, 32)
        self.norm = nn.BatchNorm1d(32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores [batch, classes]."""
        scores: Tensor = self.head(self.norm(self.stem(x)).relu())
        return scores


def _poisoned(looks_first: bool) -> nn.Module:
    """An infinite batch whose step is left out; the running statistics have seen it, or not."""
    model = Normed()
    optimizer = Adam(model.parameters(), lr=1e-3)
    for step in range(60):
        x, y = data.digits(32)
        if step == 25:
            x[0, 0] = torch.inf
        if looks_first and not x.isfinite().all():
            continue
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        if not loss.isfinite():
            continue
        loss.backward()
        optimizer.step()
    return model


TRAININGS: tuple[Training, ...] = (
    ill(
        "float16-residual",
        "G007",
        "up down",
        partial(_residual, torch.float16),
        partial(_residual, torch.bfloat16),
        "a branch overflows, and the norm behind it makes NaN of it",
    ),
    ill(
        "float16-adam",
        "G005",
        "optimizer layers head",
        partial(_in_dtype, torch.float16, 1e-3, gain=1e-3),
        partial(_in_dtype, torch.float32, 1e-3, gain=1e-3),
        "eps is zero in float16, and so are squares of small gradients",
    ),
    ill(
        "bfloat16-weights",
        "G405",
        "optimizer",
        partial(_in_dtype, torch.bfloat16, 1e-5, steps=200),
        partial(_in_dtype, torch.float32, 1e-5, steps=200),
        "updates are less than half the spacing of the numbers",
    ),
    ill(
        "zeroed-under-a-scaler",
        "G501 G008",
        "optimizer stem up down norm head",
        partial(_scaled, scale=2.0**24, guard=_zeroed),
        partial(_scaled, scale=2.0**24),
        "zeroed gradients hide the overflow from the scaler, whose scale stays too large",
    ),
    ill(
        "clip-before-unscale",
        "G408",
        "optimizer",
        partial(_scaled, scale=2.0**10, clip="before unscale_"),
        partial(_scaled, scale=2.0**10, clip="after unscale_"),
        "gradients are clipped while they carry the loss scale",
    ),
    ill(
        "clip-by-value-before-unscale",
        "G408",
        "optimizer",
        partial(_scaled, clip="by value before unscale_"),
        partial(_scaled, clip="after unscale_"),
        "every element above 1 / 1024 counts as 1 / 1024",
    ),
    ill(
        "overflow-at-any-scale",
        "G007 G008",
        "up down optimizer",
        partial(_scaled, overflows=lambda step: step > 60, steps=90),
        partial(_scaled, steps=90),
        "the forward pass overflows in every step, whatever the loss scale",
    ),
    ill(
        "poisoned-batch-norm",
        "G009",
        "norm",
        partial(_poisoned, False),
        partial(_poisoned, True),
        "the step of an infinite batch is left out, but the running statistics keep it",
    ),
)
