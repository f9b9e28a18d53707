"""How exact and how fast are numerical gradients, gains, and the check of a whole model?"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from bench.table import Row, markdown, publish
from steadygrad import numerics
from steadygrad.core.theory import gain_of, normal_grid
from steadygrad.testing.nets import WrongLinear

Function = Callable[[np.ndarray], float]

FUNCTIONS: dict[str, tuple[Function, Sequence[float]]] = {
    "x^4": (lambda x: (x**4).sum(), (1.0, 2.0, 3.0, 4.0)),
    "exp": (lambda x: np.exp(x).sum(), (0.5, -1.0, 2.0)),
    "sin 10x": (lambda x: np.sin(10 * x).sum(), (0.3, 1.2)),
    "log": (lambda x: np.log(x).sum(), (0.5, 2.0, 30.0)),
    "sqrt": (lambda x: np.sqrt(x).sum(), (0.5, 4.0)),
    "1/x": (lambda x: (1 / x).sum(), (0.7, 3.0)),
    "tanh": (lambda x: np.tanh(x).sum(), (0.1, 1.0, -2.0)),
    "sigmoid": (lambda x: (1 / (1 + np.exp(-x))).sum(), (0.0, 4.0)),
    "softplus": (lambda x: np.log1p(np.exp(x)).sum(), (-2.0, 3.0)),
    "Gauss": (lambda x: np.exp(-(x @ x)), (0.4, -0.6, 0.2)),
    "logsumexp": (lambda x: np.log(np.exp(x).sum()), (0.1, 1.0, 2.0, -1.0)),
    "norm": (lambda x: np.sqrt(x @ x), (3.0, 4.0)),
    "Rosenbrock": (lambda x: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2, (-1.2, 1.0)),
    "Rastrigin": (lambda x: (x**2 - 10 * np.cos(2 * np.pi * x) + 10).sum(), (0.3, 1.7)),
    "Himmelblau": (
        lambda x: (x[0] ** 2 + x[1] - 11) ** 2 + (x[0] + x[1] ** 2 - 7) ** 2,
        (1.0, 2.5),
    ),
    "Beale": (
        lambda x: (1.5 - x[0] + x[0] * x[1]) ** 2 + (2.25 - x[0] + x[0] * x[1] ** 2) ** 2,
        (1.0, 0.7),
    ),
    "arctan": (lambda x: np.arctan(x).sum(), (0.2, 5.0)),
    "product": (lambda x: np.prod(x), (1.5, -2.0, 0.5)),
    "sin 1/x": (lambda x: np.sin(1 / x).sum(), (0.3, 0.9)),
    "x e^x / (1 + x^2)": (lambda x: (x * np.exp(x) / (1 + x**2)).sum(), (0.8, 2.2)),
}

ACTIVATIONS = {
    "ReLU": nn.ReLU(),
    "LeakyReLU .01": nn.LeakyReLU(0.01),
    "LeakyReLU .2": nn.LeakyReLU(0.2),
    "ELU": nn.ELU(),
    "SELU": nn.SELU(),
    "GELU": nn.GELU(),
    "SiLU": nn.SiLU(),
    "Mish": nn.Mish(),
    "Hardswish": nn.Hardswish(),
    "Tanh": nn.Tanh(),
    "Hardtanh": nn.Hardtanh(),
    "Softsign": nn.Softsign(),
    "Sigmoid": nn.Sigmoid(),
    "Softplus": nn.Softplus(),
}
SAMPLES = 10_000_000


def run() -> None:
    """Compare with numdifftools, Monte Carlo, and planted faults; write numerics.md."""
    parts = [_slopes(), _gains(), _models()]
    publish("numerics", "Numerical gradients, gains, and backward passes checked by them", parts)


def _slopes() -> str:
    import numdifftools

    rows: list[Row] = []
    for name, (f, point) in FUNCTIONS.items():
        x = np.array(point)
        exact = _exact(f, x)
        theirs = numdifftools.Gradient(f)
        calls = _calls(f, lambda counted, at=x: numdifftools.Gradient(counted)(at))
        found = numerics.gradient(f, x, "richardson")
        rows.append(
            (
                name,
                _error(found.value, exact),
                _error(np.atleast_1d(theirs(x)), exact),
                found.calls,
                calls,
                _microseconds(lambda f=f, x=x: numerics.gradient(f, x, "richardson")),
                _microseconds(lambda theirs=theirs, x=x: theirs(x)),
                _microseconds(lambda f=f, x=x: numerics.gradient(f, x)),
            )
        )
    worst = [max(float(row[place]) for row in rows) for place in (1, 2)]
    quicker = [float(row[6]) / float(row[5]) for row in rows]
    text = (
        f"## 20 functions against numdifftools {numdifftools.__version__}\n\n"
        "Largest error relative to the largest slope (exact: the complex step), calls of f, "
        f"microseconds. Largest error: {worst[0]:.2g} against {worst[1]:.2g}; median speed-up "
        f"{np.median(quicker):.1f}, smallest {min(quicker):.1f}."
    )
    header = ("f", "error", "theirs", "calls", "theirs", "us", "theirs", "us, central")
    return f"{text}\n\n{markdown(header, rows)}"


def _exact(f: Function, x: np.ndarray) -> np.ndarray:
    """Return the gradient by the complex step, exact to rounding; all functions are analytic."""
    return np.array([f(x + 1e-30j * np.eye(len(x))[place]).imag / 1e-30 for place in range(len(x))])


def _error(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.abs(found - exact).max() / np.abs(exact).max())


def _calls(f: Function, use: Callable[[Function], object]) -> int:
    count = 0

    def counted(x: np.ndarray) -> float:
        nonlocal count
        count += 1
        return f(x)

    use(counted)
    return count


def _microseconds(call: Callable[[], object], times: int = 30) -> float:
    best = math.inf
    for _ in range(times):
        begin = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - begin)
    return best * 1e6


def _gains() -> str:
    generator = torch.Generator().manual_seed(0)
    rows: list[Row] = []
    for name, activation in ACTIVATIONS.items():
        z = torch.tensor(normal_grid(200001)).requires_grad_()
        gain = gain_of(*_values(activation, z), normal_grid(200001))
        sums = np.zeros(2)
        for _ in range(10):
            half = torch.randn(SAMPLES // 20, generator=generator, dtype=torch.float64)
            half /= half.square().mean().sqrt()
            sample = torch.cat([half, -half])
            values, slopes = _values(activation, sample.requires_grad_())
            sums += (values**2).mean(), (slopes**2).mean()
        second, slope = sums / 10
        rows.append(
            (
                name,
                f"{gain.second_moment:.6f}",
                f"{second:.6f}",
                f"{gain.slope:.6f}",
                f"{slope:.6f}",
                max(abs(gain.second_moment / second - 1), abs(gain.slope / slope - 1)),
            )
        )
    worst = max(float(row[-1]) for row in rows)
    text = (
        f"## Gains by quadrature against Monte Carlo, {SAMPLES:.0e} samples\n\n"
        f"The grid of 200,001 nodes. Largest relative difference {worst:.1e}. Samples come in "
        "pairs z, -z, scaled to a mean square of 1: without that, chance alone is 7e-4 of E f^2."
    )
    return f"{text}\n\n" + markdown(
        ("activation", "E f^2", "sampled", "E f'^2", "sampled", "apart"), rows
    )


def _values(activation: nn.Module, z: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    values = activation(z)
    (slopes,) = torch.autograd.grad(values.sum(), z)
    return values.detach().numpy(), slopes.numpy()


def _models(seeds: int = 10) -> str:
    rows: list[Row] = []
    for wrong in (None, 0, 1, 2, 3):
        named, passes, seconds = 0, 0, 0.0
        for seed in range(seeds):
            begin = time.perf_counter()
            found = _checked(wrong, seed)
            seconds += time.perf_counter() - begin
            named += found.wrong == (() if wrong is None else (f"{2 * wrong}.weight",))
            passes = max(passes, found.passes)
        rows.append(
            (
                "nothing" if wrong is None else f"{2 * wrong}.weight, 1 %",
                f"{named} of {seeds}",
                passes,
                seconds / seeds,
            )
        )
    return (
        "## A ReLU model of 1.3 M parameters, one parameter's backward off by 1 %\n\n"
        + markdown(("planted", "said exactly that", "forward passes, at most", "seconds"), rows)
    )


def _checked(wrong: int | None, seed: int) -> numerics.Comparison:
    torch.manual_seed(seed)
    widths = (784, 1024, 384, 256, 10)
    layers: list[nn.Module] = []
    for place in range(4):
        kind = WrongLinear if place == wrong else nn.Linear
        layers += [kind(widths[place], widths[place + 1]), nn.ReLU()]
    model, x, y = nn.Sequential(*layers[:-1]), torch.randn(64, 784), torch.randint(10, (64,))
    return numerics.check(model, loss=lambda m: nn.functional.cross_entropy(m(x), y), seed=seed)
