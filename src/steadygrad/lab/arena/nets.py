"""Networks of equal blocks: a stem, blocks that keep the width, and a head."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

Make = Callable[[], nn.Module]
Norm = Callable[[int], nn.Module]
Block = Callable[[int, Make, Norm], nn.Module]
"""Makes a block of a width from what makes an activation and what makes a norm of a width."""

PIXELS, CLASSES, TOKENS = 64, 10, 8


class Net(nn.Module):
    """A stem, blocks, and a head; with `tokens`, the input's rows are a sequence."""

    def __init__(self, width: int, blocks: nn.Sequential, last: Make, tokens: bool = False) -> None:
        super().__init__()
        self.tokens = tokens
        self.stem = nn.Linear(PIXELS // TOKENS if tokens else PIXELS, width)
        self.place = nn.Parameter(torch.randn(TOKENS, width)) if tokens else None
        self.blocks = blocks
        self.last = last()
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores [batch, classes] of images [batch, pixels]."""
        if self.place is None:
            h = self.blocks(self.stem(x))
        else:
            h = self.blocks(self.stem(x.unflatten(1, (TOKENS, -1))) + self.place).mean(dim=1)
        scores: Tensor = self.head(self.last(h))
        return scores


class Residual(nn.Module):
    """x + F(x), where F is activation and linear layer, a norm before them."""

    def __init__(self, width: int, activation: Make, norm: Norm) -> None:
        super().__init__()
        self.branch = nn.Sequential(norm(width), activation(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return [batch, width]."""
        out: Tensor = x + self.branch(x)
        return out


class Rezero(Residual):
    """x + a F(x) with a scalar that is learned from 0 on."""

    def __init__(self, width: int, activation: Make, norm: Norm) -> None:
        super().__init__(width, activation, norm)
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Return [batch, width]."""
        out: Tensor = x + self.scale * self.branch(x)
        return out


def plain(width: int, activation: Make, norm: Norm) -> nn.Module:
    """Make activation, linear layer, norm."""
    return nn.Sequential(activation(), nn.Linear(width, width), norm(width))


def stacked(block: Block, depth: int, width: int, activation: Make, norm: Norm) -> Net:
    """Stack blocks, an activation behind the last; ours with a skip have a last norm before it."""
    blocks = nn.Sequential(*(block(width, activation, norm) for _ in range(depth)))
    if block in (Residual, Rezero):
        return Net(width, blocks, lambda: nn.Sequential(norm(width), activation()))
    return Net(width, blocks, activation)


def transformer(first: bool, depth: int, width: int, activation: Make) -> Net:
    """Stack torch's own Transformer layers on the digits' rows, their norms first or behind."""
    if width % 4:
        raise ValueError(f"expected a width that is divided by 4 heads, got {width}")
    layers = [
        nn.TransformerEncoderLayer(
            width, 4, 2 * width, 0.0, activation(), batch_first=True, norm_first=first
        )
        for _ in range(depth)
    ]
    last = (lambda: nn.LayerNorm(width)) if first else nn.Identity
    return Net(width, nn.Sequential(*layers), last, tokens=True)


def decades(net: nn.Module, loss: Callable[[nn.Module], Tensor]) -> float:
    """Return log10 of |gradient| before the blocks over behind them; NaN for another's network."""
    if not isinstance(net, Net):
        return math.nan
    seen: list[Tensor] = []
    handle = net.blocks.register_forward_hook(lambda _, args, out: seen.extend((args[0], out)))
    try:
        before, behind = torch.autograd.grad(loss(net), seen)
    finally:
        handle.remove()
    return float((before.double().norm() / behind.double().norm()).log10())
