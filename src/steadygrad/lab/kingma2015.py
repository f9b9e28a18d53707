"""Kingma 2015: Adam's step does not depend on the gradient's scale; descent's does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from steadygrad import numerics
from steadygrad.lab.experiment import Curve, Figure, Measure, Plan, Result, above, experiment, near
from steadygrad.numerics.descent import Rule

CONDITION = 1e4  # largest curvature over the smallest
LR = 0.01
GOAL = 0.1  # of the first distance to the minimum
RULES: tuple[Rule, ...] = ("sgd", "rmsprop", "adam")
START = torch.tensor([1.0, 1.0], dtype=torch.float64)
MINIMUM = {False: (0.0, 0.0), True: (-(0.5**0.5), 0.5**0.5)}


@experiment(
    "kingma2015",
    claim="Adam's steps are bounded by the learning rate and ignore the scale of the loss; plain "
    "descent explodes when the loss is multiplied",
    published="invariance to diagonal rescaling of the gradients, steps bounded by alpha (sec. 1 "
    "and 2.1)",
    tolerance="1e-4 of the rate and of the path, and no step of hundreds: epsilon = 1e-8 beside "
    "gradients of 1e-2 costs 1e-6",
    source="Kingma & Ba 2015, Adam: a method for stochastic optimization; Tieleman & Hinton 2012, "
    "Lecture 6.5 (RMSprop)",
)
def kingma2015(plan: Plan) -> Result:
    """Descend a quadratic bowl whose two curvatures differ by 1e4, by `numerics.descend`.

    A curvature that is multiplied is a gradient that is rescaled along its axis: it must cost Adam
    and RMSprop no step, and costs plain descent hundreds of times as many. Turned by 45 degrees the
    bowl is no diagonal rescaling, and the advantage may go, which the table shows. Plain descent
    has lr = 1.9 / f'', near its best, the others 0.01. Steps are counted until a tenth of the
    distance to the minimum is left.
    """
    rows, curves = [], []
    steps: dict[str, int] = {}
    bowls = {"round": bowl(condition=1.0), "": bowl(), "turned": bowl(turned=True)}
    for rule, kind in plan.each([(rule, kind) for kind in bowls for rule in RULES]):
        lr, most = (
            (1.9 / (1 if kind == "round" else CONDITION), 15000) if rule == "sgd" else (LR, 3000)
        )
        path = numerics.descend(bowls[kind], START, lr, 1e-9, plan.pick(50, most, most), rule=rule)
        left = np.linalg.norm(path.points - MINIMUM[kind == "turned"], axis=1)
        arrived = np.flatnonzero(left < GOAL * left[0])
        name = f"{rule}, {kind}" if kind else rule
        steps[name] = int(arrived[0]) if len(arrived) else len(left)
        rows.append([name, lr, steps[name]])
        curves.append(Curve(name, range(1, 1 + len(left)), left.tolist()))
    measures = [
        Measure("Adam's first step over lr, largest coordinate", _first(), 0.9999, 1.0001, 1.0),
        Measure("Adam's path moves when f is multiplied by 1000", _moved(), 0.0, 1e-4, 0.0),
        above("plain descent diverges when f is multiplied by 1000", _diverges(), 1),
        near("steps, Adam, condition 1e4 over 1", steps["adam"] / steps["adam, round"], 1.0, 1e-4),
        near("steps, RMSprop, likewise", steps["rmsprop"] / steps["rmsprop, round"], 1.0, 1e-4),
    ]
    header = ("rule", "lr", "steps to a tenth of the distance")
    return Result(measures, header, rows, Figure("step", "distance to the minimum", curves, "xy"))


def bowl(
    turned: bool = False, times: float = 1.0, condition: float = CONDITION
) -> Callable[[Tensor], Tensor]:
    """Return f = times / 2 (condition u^2 + v^2); u and v are the coordinates, or turned by 45."""

    def f(x: Tensor) -> Tensor:
        u, v = ((x[0] + x[1]) / 2**0.5, (x[0] - x[1]) / 2**0.5 + 1.0) if turned else (x[0], x[1])
        value: Tensor = times / 2 * (condition * u**2 + v**2)
        return value

    return f


def _first() -> float:
    path = numerics.descend(bowl(), START, LR, max_steps=1, rule="adam")
    return float(np.abs(path.points[1] - path.points[0]).max()) / LR


def _moved() -> float:
    """Return how far the end of 100 steps moves, as a share of the way."""
    ends = [
        numerics.descend(bowl(times=times), START, LR, max_steps=100, rule="adam").points
        for times in (1.0, 1000.0)
    ]
    way = np.linalg.norm(ends[0][-1] - ends[0][0])
    return float(np.linalg.norm(ends[1][-1] - ends[0][-1]) / way)


def _diverges() -> bool:
    path = numerics.descend(bowl(times=1000.0), START, 1.9 / CONDITION, max_steps=100)
    return path.reason == "diverged"
