"""Balduzzi 2017: with depth, gradients of nearby inputs lose all likeness; skips keep some."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from steadygrad.lab.experiment import Curve, Figure, Plan, Result, above, below, experiment

POINTS, REACH, LAG = 256, 2.0, 10
DEPTHS = (2, 4, 10, 24)


@experiment(
    "balduzzi2017",
    claim="Gradients of a deep plain network resemble white noise over the inputs; those of a "
    "residual network keep their correlation for longer",
    published="correlation falls as 2^-L without skips, as 1 / sqrt(L) with skips and batch norm "
    "(theorems 1 to 3, figures 1 and 2)",
    tolerance="an order and no number, as the laws are for other pairs than ours: each deeper "
    "plain net has less than the shallower one, and 24 plain layers less than 24 residual ones",
    source="Balduzzi, Frean, Leary, Lewis, Ma & McWilliams 2017, The shattered gradients problem",
)
def balduzzi2017(plan: Plan) -> Result:
    """Correlate the input gradients of 1-D nets at points 10 of 256 apart, mean of ten draws.

    ReLU nets of 200 units at He's variance on [-2, 2], as in the paper's figure 1. The law 2^-L is
    for pairs of inputs far apart in a network's own terms; at a fixed lag the fall is slower, so
    that only the order is held to. What the paper says of residual nets with batch norm does not
    show here: their correlation at this lag is near 0, below the plain nets'. Normalizing over the
    256 points spreads the kinks of all units over the whole range. The table has them; batch
    norm's statistics are constants to the gradient there, as each point would see all others.
    """
    draws = plan.pick(1, 10, 50)
    arms = [("plain", depth) for depth in DEPTHS]
    arms += [("residual", 24), ("residual, batch norm", 24), ("residual, batch norm", 50)]
    found: dict[tuple[str, int], list[float]] = {}
    for arm in plan.each(arms):
        curves = [correlations(_gradient(*arm, plan.seed + draw)) for draw in range(draws)]
        found[arm] = torch.stack(curves).mean(dim=0).tolist()
    at = {arm: curve[LAG] for arm, curve in found.items()}
    falls = [at["plain", depth] for depth in DEPTHS]
    measures = [
        below(f"correlation at lag {LAG}, plain {b} over plain {a}", after / before, 1.0)
        for (a, b), (before, after) in zip(pairwise(DEPTHS), pairwise(falls), strict=True)
    ]
    measures.append(above("residual 24 over plain 24", at["residual", 24] / falls[-1], 1.0))
    rows = [[name, depth, value] for (name, depth), value in at.items()]
    lines = [Curve(f"{name} {depth}", range(40), c[:40]) for (name, depth), c in found.items()]
    header = ("network", "layers", f"correlation at lag {LAG}")
    return Result(measures, header, rows, Figure("lag, of 256 points", "correlation", lines))


def _gradient(kind: str, depth: int, seed: int, width: int = 200) -> Tensor:
    """Return d f / d x at each point, [256]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.linspace(-REACH, REACH, POINTS)[:, None].requires_grad_()
    bias = torch.randn(width, generator=generator)
    h = x @ torch.randn(1, width, generator=generator) + bias
    for _ in range(depth - 1):
        weight = torch.randn(width, width, generator=generator) * (2 / width) ** 0.5
        stream = _standardized(h) if "batch" in kind else h
        branch = stream.relu() @ weight
        h = h + branch if "residual" in kind else branch
    out = h.relu() @ torch.randn(width, 1, generator=generator)
    (g,) = torch.autograd.grad(out.sum(), x)
    return g[:, 0].detach()


def _standardized(h: Tensor) -> Tensor:
    """Return batch normalization as it is at inference, its statistics constants of this batch."""
    with torch.no_grad():
        mean, std = h.mean(dim=0), h.std(dim=0) + 1e-5
    return (h - mean) / std


def correlations(g: Tensor) -> Tensor:
    """Return the autocorrelation of a gradient over the points, at lags 0 to 63."""
    centered = g - g.mean()
    total = centered.square().sum()
    lags = [(centered[lag:] * centered[: len(g) - lag]).sum() / total for lag in range(64)]
    return torch.stack(lags)
