"""Xiao 2018: a delta-orthogonal convolution passes gradients through thousands of layers."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from steadygrad.core.theory import critical_weight_variance
from steadygrad.lab.experiment import Curve, Figure, Measure, Plan, Result, below, experiment, near

WEIGHT, BIAS = 1.05, 2.01e-5  # the paper's critical point of tanh
CHANNELS, SIDE = 16, 6


@experiment(
    "xiao2018",
    claim="Delta-orthogonal kernels at the critical point let a plain 10,000-layer tanh network "
    "pass its gradient",
    published="10,000 layers train at sigma_w^2 = 1.05, sigma_b^2 = 2.01e-5 (abstract, sec. 4)",
    tolerance="1e-4 of 1.05, which is rounded to less; a delta-orthogonal gradient within two "
    "decades of 1, and a Gaussian one below 1e-20 of it, at the depth of the run",
    source="Xiao, Bahri, Sohl-Dickstein, Schoenholz & Pennington 2018, Dynamical isometry and a "
    "mean field theory of CNNs",
)
def xiao2018(plan: Plan) -> Result:
    """Solve for the critical point, and push gradients through plain convolutional tanh layers.

    3x3 kernels, 16 channels, 6x6 positions, zero padding, at the paper's depth.
    Gradients are renormalized on the way, so that none is lost to underflow;
    whether such a net trains to its accuracy takes days and is not looked at. With circular padding
    a Gaussian net keeps the gradient's norm as well: what it loses is its isometry, not its scale.
    """
    depth = plan.pick(20, 10000, 10000)
    critical = critical_weight_variance(np.tanh, _slope, BIAS)
    decades = {
        name: _decades(name, depth, plan.seed)
        for name in plan.each(("delta-orthogonal", "Gaussian"))
    }
    ends = {name: found[-1] for name, found in decades.items()}
    measures = [
        near("critical weight variance", critical, WEIGHT, 1e-4),
        Measure("gradient, delta-orthogonal, decades", ends["delta-orthogonal"], -2.0, 2.0, 0.0),
        below("gradient, Gaussian, decades", ends["Gaussian"], -20.0),
    ]
    rows = [[name, depth, end] for name, end in ends.items()]
    every = max(1, depth // 200)
    curves = [
        Curve(name, range(1, depth + 1, every), found[::every]) for name, found in decades.items()
    ]
    figure = Figure("layers passed, from the last", "decades of the gradient norm", curves)
    return Result(measures, ("kernel", "layers", "decades of the gradient"), rows, figure)


def _slope(x: np.typing.NDArray[np.float64]) -> np.typing.NDArray[np.float64]:
    return 1.0 - np.tanh(x) ** 2


def _decades(name: str, depth: int, seed: int) -> list[float]:
    """Return log10 of the gradient's norm after each layer passed, from the last to the first."""
    generator = torch.Generator().manual_seed(seed)
    kernels = [_kernel(name, generator) for _ in range(depth)]
    h = 0.1 * torch.randn(1, CHANNELS, SIDE, SIDE, generator=generator)
    slopes = []
    for kernel in kernels:
        bias = math.sqrt(BIAS) * torch.randn(CHANNELS, generator=generator)
        h = nn.functional.conv2d(h, kernel, bias, padding=1).tanh()
        slopes.append(1 - h.square())
    g = torch.randn(h.shape, generator=generator)
    g, total, found = g / g.norm(), 0.0, []
    for kernel, slope in zip(reversed(kernels), reversed(slopes), strict=True):
        g = nn.functional.conv_transpose2d(g * slope, kernel, padding=1)
        norm = float(g.norm())
        total += math.log10(norm) if norm else -math.inf
        g = g / max(norm, 1e-30)
        found.append(total)
    return found


def _kernel(name: str, generator: torch.Generator) -> Tensor:
    kernel = torch.zeros(CHANNELS, CHANNELS, 3, 3)
    if name == "Gaussian":
        std = math.sqrt(WEIGHT / (9 * CHANNELS))
        return nn.init.normal_(kernel, std=std, generator=generator)
    center = torch.empty(CHANNELS, CHANNELS)
    kernel[:, :, 1, 1] = nn.init.orthogonal_(center, math.sqrt(WEIGHT), generator=generator)
    return kernel
