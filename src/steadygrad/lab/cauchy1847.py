"""Gradient descent on x^4: the worked example, its common mistakes, and where it explodes."""

from __future__ import annotations

import numpy as np

from steadygrad import numerics
from steadygrad.lab.experiment import Curve, Figure, Measure, Plan, Result, experiment, near
from steadygrad.numerics.plain import Function
from steadygrad.numerics.slopes import Method

POINTS = (1.0, 2.0, 3.0, 4.0)
SLOPES = (4.0, 32.0, 108.0, 256.0)
METHODS: tuple[Method, ...] = ("central", "forward", "complex", "richardson")
START = 2.0


@experiment(
    "cauchy1847",
    claim="Gradient descent on a bowl converges below lr = 2 / f'' and explodes above it",
    published="f' of x^4 at 1, 2, 3, 4 is 4, 32, 108, 256; boundary 2 / f'' on a quadratic",
    tolerance="1e-6 of each slope: the error of a forward difference in float64, the roughest of "
    "the four, is 2e-8 here; 1e-4 of a boundary: the bisection ends there",
    source="Cauchy 1847, Méthode générale pour la résolution des systèmes d'équations simultanées",
)
def cauchy1847(plan: Plan) -> Result:
    """Differentiate x^4 by every method; find by bisection the lr at which descent explodes.

    On the quadratic with the curvature of x^4 at x = 2, f'' = 48, the boundary is 2 / f''. On x^4
    itself the curvature falls on the way down, and what counts is the first step: |x - lr 4 x^3| >
    |x| from lr = 1 / (2 x^2) on, which is 3 times 2 / f''. Below it, and above 2 / f'', descent
    oscillates and converges. The popular one-liner f(x + h) - f(x) / h subtracts f(x) / h: at
    x = 3 and h = 1e-7 it says -8.1e8.
    """
    rows: list[list[object]] = []
    worst = 0.0
    for method in METHODS:
        found = [float(numerics.gradient(quartic, x, method).value) for x in POINTS]
        worst = max(worst, *(abs(a / b - 1) for a, b in zip(found, SLOPES, strict=True)))
        rows.append([method, *found])
    h = 1e-7
    rows.append(["f(x + h) - f(x) / h", *(quartic(x + h) - quartic(x) / h for x in POINTS)])
    curvature = 12 * START**2
    measures = [Measure("worst relative error of a slope", worst, 0.0, 1e-6, 0.0)]
    bowl, own = plan.each([lambda x: 0.5 * curvature * x**2, quartic])
    measures += [
        near("explodes from lr, quadratic", boundary(bowl), 2 / curvature, 1e-4),
        near("explodes from lr, x^4 from 2", boundary(own), 1 / (2 * START**2), 1e-4),
    ]
    return Result(measures, ("method", *(f"x = {x:g}" for x in POINTS)), rows, paths())


def quartic(x: float) -> float:
    """Return x^4."""
    return x**4


def boundary(f: Function) -> float:
    """Return the lr at which descent from START begins to diverge, by bisection to 1e-5."""
    low, high = 1e-3, 1.0
    while high / low > 1 + 1e-5:
        middle = (low * high) ** 0.5
        path = numerics.descend(f, START, middle, max_steps=30)
        grown = abs(path.points[-1]) > abs(START) or path.reason == "diverged"
        low, high = (low, middle) if grown else (middle, high)
    return float((low * high) ** 0.5)


def paths() -> Figure:
    """Draw three descents on x^4: straight down, oscillating, exploding."""
    curves = []
    for lr, says in ((0.03, "converges"), (0.12, "oscillates"), (0.126, "explodes")):
        path = numerics.descend(quartic, START, lr, max_steps=25)
        curves.append(Curve(f"lr = {lr:g} {says}", range(len(path.points)), _cut(path.points)))
    return Figure("step", "x", curves)


def _cut(points: np.typing.NDArray[np.float64]) -> list[float]:
    return [float(x) if abs(x) < 4 else float("nan") for x in points]
