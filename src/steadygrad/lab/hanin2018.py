"""Hanin 2018: in ReLU nets the gradient's spread from draw to draw grows with depth over width."""

from __future__ import annotations

import torch

from steadygrad.core.theory import single_draw_band
from steadygrad.lab.experiment import Curve, Figure, Plan, Result, experiment, near


@experiment(
    "hanin2018",
    claim="The logarithm of a squared gradient is normal with variance 5 sum 1/n and mean minus "
    "half of that",
    published="beta = 5 sum 1/n over the hidden widths (ReLU, Gaussian weights)",
    tolerance="15 % of the variance at width 100: terms of order 1/n^2 add about 5 %, and a "
    "variance of 1500 draws has a standard error of 4 %; 10 % of the mean",
    source="Hanin & Nica 2018, Products of many large random matrices and gradients in deep "
    "neural networks",
)
def hanin2018(plan: Plan) -> Result:
    """Push a random vector back through ReLU layers at He's variance, many draws at once.

    A unit's ReLU is open or closed by chance, one in two, independently of the weights that follow:
    that is the paper's model, and what a forward pass gives. At width 50 the theorem's leading
    term is too small, by 16 % at depth 15: that row stands in the table and is held to nothing.
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
        if width >= 100:
            measures.append(near(f"variance, width {width} depth {depth}", variance, beta, 0.15))
            measures.append(near(f"mean, width {width} depth {depth}", mean, -beta / 2, 0.10))
        spreads.append(variance)
    header = ("width", "depth", "variance", "theory", "mean", "theory", "inside the 3-sigma band")
    ratios = [depth / width for width, depth in shapes]
    curves = [
        Curve("measured", ratios, spreads),
        Curve("5 depth / width", ratios, [5 * ratio for ratio in ratios], theory=True),
    ]
    figure = Figure("depth over width", "variance of ln |J u|^2", curves)
    return Result(measures, header, rows, figure)


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
