"""Pennington 2017: orthogonal weights keep every singular value at 1, Gaussian ones cannot."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from steadygrad.core import theory
from steadygrad.lab.experiment import Curve, Figure, Measure, Plan, Result, experiment, near


@experiment(
    "pennington2017",
    claim="Singular values of a deep Jacobian spread as its depth: not at all for orthogonal "
    "linear nets, ever for ReLU",
    published="variance of squared singular values L (mu2/mu1^2 - 1 - s1); largest (L+1)^(L+1)/L^L "
    "for Gaussian linear nets",
    tolerance="10 % of a variance, one draw at width 400; 6 % of the largest, a mean of five draws "
    "whose edges move by about 10 %",
    source="Pennington, Schoenholz & Ganguli 2017, Resurrecting the sigmoid in deep learning "
    "through dynamical isometry",
)
def pennington2017(plan: Plan) -> Result:
    """Take the singular values of the Jacobian of 8 layers: linear or ReLU, Gaussian or orthogonal.

    Weights are scaled to E f'^2 Var(W) n = 1, so that the mean square is 1.
    """
    width, depth = plan.pick(60, 400, 1000), plan.pick(3, 8, 16)
    measures: list[Measure] = []
    rows, curves = [], []
    arms = [(a, w) for a in ("linear", "ReLU") for w in ("Gaussian", "orthogonal")]
    for activation, weights in plan.each(arms):
        values = _squares(activation, weights, width, depth, plan.seed)
        slope, fourth = (1.0, 1.0) if activation == "linear" else (0.5, 0.5)
        ensemble = -1.0 if weights == "Gaussian" else 0.0
        wanted = theory.singular_value_variance(depth, slope, fourth, ensemble)
        variance = float(values.var() / values.mean() ** 2)
        name = f"variance, {activation} {weights}"
        still = Measure(name, variance, 0.0, 1e-6, 0.0)
        measures.append(near(name, variance, wanted, 0.10) if wanted else still)
        rows.append([activation, weights, variance, wanted, float(values.max() / values.mean())])
        curves.append(
            Curve(f"{activation}, {weights}", range(width), values.sort().values.tolist())
        )
    draws = plan.pick(1, 5, 10)
    edges = [
        float(_squares("linear", "Gaussian", width, depth, plan.seed + 1 + draw).max())
        for draw in range(draws)
    ]
    largest = theory.largest_singular_value_squared(depth)
    measures.append(near("largest, linear Gaussian", sum(edges) / draws, largest, 0.06))
    header = ("activation", "weights", "variance of s^2", "theory", "largest s^2")
    return Result(measures, header, rows, Figure("rank", "squared singular value", curves))


def _squares(activation: str, weights: str, width: int, depth: int, seed: int) -> Tensor:
    """Return the squared singular values of one Jacobian, [width]."""
    generator = torch.Generator().manual_seed(seed)
    relu = activation == "ReLU"
    h = torch.randn(width, generator=generator, dtype=torch.float64)
    jacobian = torch.eye(width, dtype=torch.float64)
    for _ in range(depth):
        weight = torch.empty(width, width, dtype=torch.float64)
        if weights == "orthogonal":
            nn.init.orthogonal_(weight, generator=generator)
        else:
            nn.init.normal_(weight, std=width**-0.5, generator=generator)
        weight *= 2**0.5 if relu else 1.0
        h = weight @ h
        jacobian = weight @ jacobian
        if relu:
            jacobian = jacobian * (h > 0)[:, None]
            h = h.relu()
    values: Tensor = torch.linalg.svdvals(jacobian)
    return values.square()
