"""Schoenholz 2017: chi_1 says how fast gradients change with depth, and what depth can train."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from steadygrad.core import theory
from steadygrad.lab.experiment import (
    Curve,
    Figure,
    Plan,
    Result,
    above,
    below,
    experiment,
    near,
)
from steadygrad.lab.nets import gradient_norms, last, linears, plain, sgd, trained

BIAS = 0.05  # variance of the biases, as in the paper's figures
VARIANCES = (1.0, 1.3, 1.7603, 2.5)
SHALLOW, DEEP = 10, 64
RATES = (3e-3, 1e-2, 3e-2)


@experiment(
    "schoenholz2017",
    claim="The gradient changes by chi_1 per layer; networks train up to about 6 depth scales",
    published="chi_1 in closed form ; trainable depth 6 xi (figure 5)",
    tolerance="2 % of the ratio sqrt(chi_1) per layer, two standard deviations of one draw of "
    "width 300 over 40 layers; 6 scales within half an order, as they are read off a figure: half "
    "as many learn, three times as many do not; a loss is stuck above 2.2 (ln 10 = 2.303), and "
    "learning below 1.15, its half",
    source="Schoenholz, Gilmer, Ganguli & Sohl-Dickstein 2017, Deep information propagation",
)
def schoenholz2017(plan: Plan) -> Result:
    """Measure chi_1 of tanh nets over the phase diagram, and train nets on both sides of 6 xi.

    At weight variance 1.0, xi is 3.6 layers, so that 10 layers are 2.8 scales and must learn, and
    64 layers are 18 scales and must stay stuck. The same 64 on the critical line, 1.7603, where xi
    is about 10^4, must learn. Digits in place of MNIST. The limit of 6 scales is not sharp here: 40
    layers, 11 scales, do learn a little (loss 2.0). SGD with momentum 0.9, the best of three
    learning rates. The paper trains for far longer: "stuck" is said of this number of steps.
    """
    width, steps = plan.pick(32, 300, 1000), plan.pick(5, 250, 2000)
    rows, measures, theory_line, ours = [], [], [], []
    for variance in plan.each(VARIANCES):
        q = theory.fixed_point(np.tanh, variance, BIAS)
        wanted = math.sqrt(theory.chi1(_slope, q, variance))
        found = _ratio(variance, q, width, plan.seed)
        measures.append(near(f"gradient ratio per layer at {variance:g}", found, wanted, 0.02))
        rows.append([variance, q, found, wanted, theory.depth_scale(wanted**2)])
        ours.append(found)
        theory_line.append(wanted)
    arms = ((1.0, SHALLOW), (1.0, DEEP), (1.7603, DEEP))
    short, stuck, learned = (_loss(*arm, steps, plan.seed) for arm in arms)
    measures += [
        below(f"loss at 2.8 depth scales ({SHALLOW} layers, 1.0)", short, 1.15),
        above(f"loss at 18 depth scales ({DEEP} layers, 1.0)", stuck, 2.2),
        below(f"loss on the critical line ({DEEP} layers, 1.7603)", learned, 1.15),
    ]
    curves = [
        Curve("measured", VARIANCES, ours),
        Curve("sqrt(chi_1)", VARIANCES, theory_line, theory=True),
    ]
    figure = Figure("weight variance", "gradient ratio per layer", curves)
    header = ("weight variance", "fixed point q", "ratio per layer", "theory", "depth scale")
    return Result(measures, header, rows, figure)


def _slope(x: theory.Array) -> theory.Array:
    return 1.0 - np.tanh(x) ** 2


def _net(variance: float, widths: list[int], seed: int) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    net = plain(
        widths,
        nn.Tanh,
        lambda w: nn.init.normal_(w, std=math.sqrt(variance / w.shape[1]), generator=generator),
    )
    for layer in linears(net):
        nn.init.normal_(layer.bias, std=math.sqrt(BIAS), generator=generator)
    return net


def _ratio(variance: float, q: float, width: int, seed: int, depth: int = 40) -> float:
    """Return the gradient's ratio per layer, the first layers and the last left out."""
    generator = torch.Generator().manual_seed(seed + 1)
    net = _net(variance, [width] * (depth + 1), seed)
    scale = math.sqrt(max(q - BIAS, 1e-3) / variance)  # the first pre-activation starts at q
    x, cotangent = (torch.randn(100, width, generator=generator) for _ in range(2))
    norms = list(gradient_norms(net, scale * x, cotangent))
    return float((norms[4] / norms[-2]) ** (1 / (len(norms) - 6)))


def _loss(variance: float, depth: int, steps: int, seed: int) -> float:
    """Return the last loss with the best of the learning rates."""
    widths = [64, *[128] * (depth - 1), 10]
    return min(
        last(trained(_net(variance, widths, seed), sgd(lr, 0.9), steps, seed=seed)) for lr in RATES
    )
