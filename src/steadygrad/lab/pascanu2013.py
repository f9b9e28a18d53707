"""Pascanu 2013: gradients explode through time where the spectral radius allows; clipping helps."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

import steadygrad as sg
from steadygrad.lab.experiment import (
    Curve,
    Figure,
    Measure,
    Plan,
    Result,
    above,
    below,
    experiment,
    near,
)

STEPS = 50  # of the one-unit network of figure 6
TARGET = 0.7
START = 0.5


@experiment(
    "pascanu2013",
    claim="Through time, a gradient goes as the spectral radius to the power of the steps; a cliff "
    "throws descent away, clipping the norm keeps it",
    published="linear case: explodes above radius 1, vanishes below (sec. 2.1); a wall in the loss "
    "of one unit over 50 steps (figure 6)",
    tolerance="1 % of the ratio per step: the norm turns with the complex eigenvalues, which the "
    "mean over 1000 steps levels; the wall is a gradient 500 times the median, a tenth of "
    "what was measured",
    source="Pascanu, Mikolov & Bengio 2013, On the difficulty of training recurrent neural "
    "networks",
)
def pascanu2013(plan: Plan) -> Result:
    """Take gradients through linear recurrences, map the cliff of one unit, and descend at it.

    The one unit is x_{t+1} = w sigmoid(x_t) + b from x_0 = 0.5, its loss (sigmoid(x_50) - 0.7)^2,
    as in figure 6. One step of descent is taken from the wall's steepest point, w = 4.9 and
    b = -2.55, with lr 1: it throws w far away, and `steadygrad.guard` with `clip_norm(0.1)` holds
    it. The wall stands near w = 5 here; the paper draws it and gives no number.
    """
    width = plan.pick(32, 256, 1024)
    radii = (0.9, 1.0, 1.1)
    ratios = [_ratio(radius, width, plan.seed) for radius in plan.each(radii)]
    measures = [
        near(f"gradient ratio per step at radius {radius:g}", ratio, radius, 0.01)
        for radius, ratio in zip(radii, ratios, strict=True)
    ]
    weights = np.linspace(2.0, 8.0, plan.pick(21, 161, 401))
    biases = np.linspace(-4.0, 0.0, plan.pick(31, 241, 601))
    slopes = _slopes(weights, biases)
    steepest = np.unravel_index(int(np.argmax(slopes)), slopes.shape)
    thrown, held = (_thrown(clipped) for clipped in (False, True))
    measures += [
        above("steepest gradient over the median", slopes.max() / np.median(slopes), 500),
        Measure("w of the steepest point", float(weights[steepest[0]]), 4.5, 5.5),
        above("thrown by one step without clipping, |dw|", thrown, 2.0),
        below("thrown by one step with clip_norm(0.1), |dw|", held, 0.1 * (1 + 1e-5)),
    ]
    rows = [[radius, ratio] for radius, ratio in zip(radii, ratios, strict=True)]
    row = slopes[steepest[0]]
    cliff = Curve(f"w = {weights[steepest[0]]:.2f}", biases.tolist(), row.tolist())
    figure = Figure("b", "gradient norm of the loss after 50 steps", [cliff], "y")
    return Result(measures, ("spectral radius", "gradient ratio per step"), rows, figure)


def _ratio(radius: float, width: int, seed: int, steps: int = 1000) -> float:
    """Return the gradient's ratio per step of h_{t+1} = W h_t, once the transient is over."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(width, width, generator=generator, dtype=torch.float64)
    matrix *= radius / torch.linalg.eigvals(matrix).abs().max()
    g = torch.randn(width, generator=generator, dtype=torch.float64)
    logs = []
    for _ in range(2 * steps):
        g = matrix.T @ (g / g.norm())
        logs.append(math.log(float(g.norm())))
    return math.exp(sum(logs[steps:]) / steps)


def _slopes(
    weights: np.typing.NDArray[np.float64], biases: np.typing.NDArray[np.float64]
) -> np.typing.NDArray[np.float64]:
    """Return the gradient norm of the one-unit loss, [weights, biases]."""
    w = torch.tensor(weights)[:, None].expand(-1, len(biases)).clone().requires_grad_()
    b = torch.tensor(biases)[None, :].expand(len(weights), -1).clone().requires_grad_()
    dw, db = torch.autograd.grad(_loss(w, b).sum(), (w, b))
    return (dw**2 + db**2).sqrt().numpy()


def _loss(w: Tensor, b: Tensor) -> Tensor:
    x: Tensor = torch.full_like(w, START)
    for _ in range(STEPS):
        x = w * x.sigmoid() + b
    return (x.sigmoid() - TARGET) ** 2


def _thrown(clipped: bool) -> float:
    """Return |dw| of one descent step of lr 1 from the wall."""
    w, b = (nn.Parameter(torch.tensor(value, dtype=torch.float64)) for value in (4.9, -2.55))
    optimizer = torch.optim.SGD([w, b], lr=1.0)
    handle = sg.guard(optimizer, sg.clip_norm(0.1)) if clipped else None
    _loss(w, b).backward()
    optimizer.step()
    if handle is not None:
        handle.remove()
    return math.hypot(float(w.detach()) - 4.9, float(b.detach()) + 2.55)
