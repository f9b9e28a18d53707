"""Polyak 1964: momentum moves the largest stable learning rate from 2 to 2 (1 + beta) over f''."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from steadygrad import numerics
from steadygrad.core.theory import largest_stable_lr
from steadygrad.lab.experiment import Curve, Figure, Plan, Result, experiment, near

CURVATURE = 10.0
MOMENTA = (0.0, 0.5, 0.9, 0.99)


@experiment(
    "polyak1964",
    claim="On a quadratic, heavy-ball descent is stable exactly below lr = (2 + 2 beta) / f''",
    published="(2 + 2 beta) / lambda_max",
    tolerance="1e-3 of the boundary: a path that is 1e-3 beyond it grows e^4-fold in 2,000 steps",
    source="Polyak 1964, Some methods of speeding up the convergence of iteration methods",
)
def polyak1964(plan: Plan) -> Result:
    """Bisect, for four momenta, the learning rate from which on `numerics.descend` diverges."""
    steps = plan.pick(60, 2000, 20000)
    measures, rows = [], []
    for beta in plan.each(MOMENTA[: plan.pick(1, 4, 4)]):
        found, wanted = _boundary(beta, steps), largest_stable_lr(CURVATURE, beta)
        measures.append(near(f"explodes from lr, momentum {beta:g}", found, wanted, 1e-3))
        rows.append([beta, found, wanted])
    momenta, ours, theory = zip(*rows, strict=True)
    curves = [
        Curve("measured", momenta, ours),
        Curve("(2 + 2 beta) / f''", momenta, theory, theory=True),
    ]
    header = ("momentum", "explodes from lr", "theory")
    return Result(measures, header, rows, Figure("momentum", "largest stable lr", curves))


def _boundary(beta: float, steps: int) -> float:
    low, high = 1.0 / CURVATURE, 8.0 / CURVATURE
    while high / low > 1 + 2e-4:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if _grows(middle, beta, steps) else (middle, high)
    return float((low * high) ** 0.5)


def _grows(lr: float, beta: float, steps: int) -> bool:
    make = partial(torch.optim.SGD, lr=lr, momentum=beta)
    start = torch.tensor(1.0, dtype=torch.float64)
    path = numerics.descend(_bowl, start, lr, 1e-6, steps, rule=make)
    return path.reason == "diverged" or float(abs(path.points[-50:]).max()) > 10


def _bowl(x: Tensor) -> Tensor:
    return CURVATURE / 2 * x**2
