"""Hanin 2018: in ReLU nets the gradient's spread from draw to draw grows with depth over width."""

from __future__ import annotations

import math

import torch

from steadygrad.core.theory import single_draw_band
from steadygrad.lab.experiment import Curve, Figure, Measure, Plan, Result, experiment


@experiment(
    "hanin2018",
    claim="The logarithm of a squared gradient is normal with variance 5 sum 1/n and mean minus "
    "half of that",
    published="beta = 5 sum 1/n over the hidden widths (ReLU, Gaussian weights)",
    tolerance="three standard errors of the closed form at finite width, which adds 4 % to the "
    "theorem's leading term at width 100 and 8 % at 50: 11 % of a variance of 1500 draws, and "
    "3 / sqrt(1500) of its root for a mean",
    source="Hanin & Nica 2018, Products of many large random matrices and gradients in deep "
    "neural networks",
)
def hanin2018(plan: Plan) -> Result:
    """Push a random vector back through ReLU layers at He's variance, many draws at once.

    A unit's ReLU is open or closed by chance, one in two, independently of the weights that follow:
    that is the paper's model, and what a forward pass gives. So a layer of n units multiplies the
    squared norm by 2/n times a chi-squared of K degrees, K of n open: mean and variance of its
    logarithm are sums over K of digamma and trigamma functions, to which 5/n and -5/(2n) are the
    leading terms.
    """
    draws = plan.pick(50, 1500, 20000)
    shapes = plan.pick([(100, 2)], [(50, 15), (100, 10), (100, 20), (100, 40)], [(200, 100)])
    measures, rows, spreads = [], [], []
    for width, depth in plan.each(shapes):
        logs = _logs(width, depth, draws, plan.seed)
        variance, mean, beta = float(logs.var()), float(logs.mean()), 5 * depth / width
        band = single_draw_band([width] * depth)
        inside = ((logs / 2 / 2.302585 - band.shift).abs() <= band.half_width).double().mean()
        rows.append([width, depth, variance, beta, mean, -beta / 2, float(inside)])
        exact_mean, exact = (depth * one for one in layer(width))
        error = (exact / draws) ** 0.5
        measures += [
            _held(
                f"variance, width {width} depth {depth}",
                variance,
                exact,
                3 * exact * (2 / draws) ** 0.5,
                beta,
            ),
            _held(f"mean, width {width} depth {depth}", mean, exact_mean, 3 * error, -beta / 2),
        ]
        spreads.append(variance)
    header = ("width", "depth", "variance", "theory", "mean", "theory", "inside the 3-sigma band")
    ratios = [depth / width for width, depth in shapes]
    curves = [
        Curve("measured", ratios, spreads),
        Curve("5 depth / width", ratios, [5 * ratio for ratio in ratios], theory=True),
    ]
    figure = Figure("depth over width", "variance of ln |J u|^2", curves)
    return Result(measures, header, rows, figure)


def _held(name: str, ours: float, exact: float, error: float, published: float) -> Measure:
    return Measure(name, ours, exact - error, exact + error, published)


def layer(width: int) -> tuple[float, float]:
    """Return mean and variance of the logarithm of 2/n chi^2_K, where K is one of n in two.

    No unit open has a probability of 2^-n and is left out.
    """
    k = torch.arange(1, width + 1, dtype=torch.float64)
    n = torch.tensor(float(width), dtype=torch.float64)
    log_odds = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    odds = torch.softmax(log_odds, dim=0)
    means = torch.digamma(k / 2) + math.log(4 / width)
    mean = odds @ means
    variance = odds @ (torch.polygamma(1, k / 2) + (means - mean) ** 2)
    return float(mean), float(variance)


def _logs(width: int, depth: int, draws: int, seed: int) -> torch.Tensor:
    """Return ln |J u|^2 of so many independent nets, [draws]."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(draws, width, generator=generator)
    u = u / u.norm(dim=1, keepdim=True)
    h = torch.randn(draws, width, generator=generator)
    for _ in range(depth):
        weight = torch.randn(draws, width, width, generator=generator) * (2 / width) ** 0.5
        h = torch.einsum("dij,dj->di", weight, h)
        u = torch.einsum("dij,dj->di", weight, u) * (h > 0)
        h = h.relu()
    return u.square().sum(dim=1).log().double()
