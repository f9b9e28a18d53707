"""Roberts 2022: GELU and SiLU need a bias variance to be critical; one gain leaves them ill."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from steadygrad.core.theory import Array, CriticalPair, critical_pair
from steadygrad.lab.experiment import Curve, Figure, Plan, Result, above, below, experiment, near
from steadygrad.lab.nets import last, linears, orthogonal, plain, sgd, trained

PUBLISHED = {"GELU": (1.98305826, 0.17292239), "SiLU": (1.98800468, 0.55514317)}
KINDS: dict[str, tuple[Callable[[], nn.Module], float]] = {
    "GELU": (nn.GELU, 1.53353),  # gain that keeps E x^2
    "SiLU": (nn.SiLU, 1.67653),
}
DEPTH, WIDTH, RATES = 30, 128, (3e-3, 1e-2, 3e-2)


@experiment(
    "roberts2022",
    claim="GELU and SiLU are half-stable: they train deep with the critical pair of weight and "
    "bias variance, and not with the gain that keeps the variance",
    published="C_W = 1.98305826, C_b = 0.17292239 (GELU); 1.98800468, 0.55514317 (SiLU) (sec. 5.3)",
    tolerance="1e-6 of a constant, from nine printed digits by a solver to 1e-7; 30 layers: a loss "
    "below 1.0 with the pair, above 2.0 with the gain (ln 10 = 2.303)",
    source="Roberts, Yaida & Hanin 2022, The principles of deep learning theory",
)
def roberts2022(plan: Plan) -> Result:
    """Solve for the pairs, and train 30 orthogonal layers with the pair and with the gain.

    The best of three learning rates for each, on digits. The first layer brings its input to the
    fixed second moment, and the head takes it back to 1.
    """
    steps = plan.pick(5, 200, 2000)
    measures, rows, curves = [], [], []
    kinds = list(KINDS.items())[: plan.pick(1, 2, 2)]
    for name, (make, gain) in plan.each(kinds):
        pair = _pair(make())
        weight, bias = PUBLISHED[name]
        measures.append(near(f"C_W of {name}", pair.weight, weight, 1e-6))
        measures.append(near(f"C_b of {name}", pair.bias, bias, 1e-6))
        found = []
        for critical in (True, False):
            courses = [_course(make, gain, pair if critical else None, lr, steps) for lr in RATES]
            best = min(courses, key=last)
            found.append(last(best))
            curves.append(Curve(f"{name}, {'pair' if critical else 'gain'}", range(steps), best))
        measures.append(below(f"loss of {name} with the pair", found[0], 1.0))
        measures.append(above(f"loss of {name} with the gain", found[1], 2.0))
        rows.append([name, pair.weight, pair.bias, pair.second_moment, *found])
    header = ("activation", "C_W", "C_b", "K*", "loss, pair", "loss, gain")
    return Result(measures, header, rows, Figure("step", "loss", curves))


def _pair(activation: nn.Module) -> CriticalPair:
    def f(x: Array) -> Array:
        return np.asarray(activation(torch.tensor(x)).numpy())

    def slope(x: Array) -> Array:
        leaf = torch.tensor(x, requires_grad=True)
        (found,) = torch.autograd.grad(activation(leaf).sum(), leaf)
        return np.asarray(found.numpy())

    return critical_pair(f, slope)


def _course(
    make: Callable[[], nn.Module], gain: float, pair: CriticalPair | None, lr: float, steps: int
) -> list[float]:
    generator = torch.Generator().manual_seed(0)
    variance = pair.weight if pair else gain**2
    widths = [64, *[WIDTH] * (DEPTH - 1), 10]
    net = plain(widths, make, orthogonal(variance, generator))
    if pair is not None:
        with torch.no_grad():
            first, *_, head = linears(net)
            first.weight *= math.sqrt((pair.second_moment - pair.bias) / pair.weight)
            head.weight /= math.sqrt(pair.weight * pair.second_moment)
            for layer in linears(net)[:-1]:
                nn.init.normal_(layer.bias, std=math.sqrt(pair.bias), generator=generator)
    return trained(net, sgd(lr, 0.9), steps)
