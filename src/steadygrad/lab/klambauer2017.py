"""Klambauer 2017: SELU pulls mean and variance to 0 and 1."""

from __future__ import annotations

import torch
from torch import nn

from steadygrad.core.theory import gain_of, normal_grid
from steadygrad.lab.experiment import Curve, Figure, Measure, Plan, Result, experiment, near

START = 2.0  # the standard deviation that layers are to pull back


@experiment(
    "klambauer2017",
    claim="Activations of SELU networks converge to mean 0 and variance 1 over the layers",
    published="the fixed point (0, 1) of the moments' map, for weights of variance 1 / n (theorem "
    "1)",
    tolerance="1e-4 of the fixed point: the quadrature's error; 0.1 of mean and variance after the "
    "layers, five standard deviations of one draw of width 512",
    source="Klambauer, Unterthiner, Mayr & Hochreiter 2017, Self-normalizing neural networks",
)
def klambauer2017(plan: Plan) -> Result:
    """Compute the fixed point, and follow inputs of standard deviation 2 through SELU layers.

    The moments are over units and samples together. Beside it ReLU with the same weights, which
    does not normalize: its second moment halves in each layer.
    """
    width, depth = plan.pick(64, 512, 1024), plan.pick(10, 100, 200)
    z = torch.tensor(normal_grid())
    slopes = torch.func.vmap(torch.func.grad(nn.functional.selu))(z)
    gain = gain_of(nn.functional.selu(z).numpy(), slopes.numpy(), normal_grid())
    moments = _moments(nn.SELU(), width, depth, plan)
    relu = _moments(nn.ReLU(), width, depth, plan)
    measures = [
        Measure("mean after a layer at (0, 1)", gain.mean, -1e-4, 1e-4, 0.0),
        near("variance after a layer at (0, 1)", gain.variance, 1.0, 2e-4),
        Measure(f"mean after {depth} layers", moments[-1][0], -0.1, 0.1, 0.0),
        Measure(f"variance after {depth} layers", moments[-1][1], 0.9, 1.1, 1.0),
    ]
    rows = [[layer + 1, *moments[layer], *relu[layer]] for layer in (0, 1, 4, depth - 1)]
    header = ("layer", "mean SELU", "variance SELU", "mean ReLU", "variance ReLU")
    layers = range(1, depth + 1)
    curves = [
        Curve(name, layers, [m[1] for m in found])
        for name, found in (("SELU", moments), ("ReLU", relu))
    ]
    return Result(measures, header, rows, Figure("layer", "variance", curves, "y"))


def _moments(
    activation: nn.Module, width: int, depth: int, plan: Plan
) -> list[tuple[float, float]]:
    generator = torch.Generator().manual_seed(plan.seed)
    h = START * torch.randn(256, width, generator=generator)
    moments = []
    for _ in plan.each(range(depth)):
        h = activation(h @ torch.randn(width, width, generator=generator) / width**0.5)
        moments.append((float(h.mean()), float(h.var())))
    return moments
