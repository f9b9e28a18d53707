"""Brock 2021: exact gains for scaled weight standardization, and adaptive gradient clipping."""

from __future__ import annotations

import math

import torch
from torch import nn

import steadygrad as sg
from steadygrad.core.theory import gain_of, normal_grid
from steadygrad.lab.experiment import Curve, Figure, Plan, Result, above, experiment, near
from steadygrad.lab.nets import digits, last, normal, plain, sgd, trained

GAMMAS = {
    "relu": (nn.ReLU, 1.7139588594436646),
    "gelu": (nn.GELU, 1.7015043497085571),
    "silu": (nn.SiLU, 1.7881293296813965),
    "tanh": (nn.Tanh, 1.5939117670059204),
    "selu": (nn.SELU, 1.0008515119552612),
    "elu": (nn.ELU, 1.2716004848480225),
    "softplus": (nn.Softplus, 1.9203323125839233),
}
RATES = (0.03, 0.1, 0.3, 1.0, 3.0)
LEARNED = 1.0


@experiment(
    "brock2021",
    claim="One gain per activation keeps the variance; clipping each unit's gradient to its "
    "weight's norm allows a larger learning rate",
    published="gamma 1.7139 for ReLU, 1.7015 for GELU (released code); AGC trains at batch sizes "
    "and rates where NF-ResNets fail",
    tolerance="1e-3 of a gamma: the released ones are Monte Carlo, with errors up to 9e-4; the "
    "largest rate at least 3 times, one step of the grid",
    source="Brock, De & Smith 2021, Characterizing signal propagation; Brock, De, Smith & Simonyan "
    "2021, High-performance large-scale image recognition without normalization",
)
def brock2021(plan: Plan) -> Result:
    """Compute the gains exactly, and train 10 ReLU layers at five rates with and without AGC.

    Plain linear layers on digits, He's initialization; `steadygrad.guard` with `clip_agc(0.02)`
    on all but the head. `check` must fault the largest rate. The paper's nets are residual and
    convolutional, on ImageNet.
    """
    rows, measures = [], []
    for name, (kind, published) in GAMMAS.items():
        gamma = _gamma(kind())
        rows.append([name, gamma, published, gamma / published - 1])
        measures.append(near(f"gamma of {name}", gamma, published, 1e-3))
    steps = plan.pick(5, 150, 2000)
    losses = {
        clipped: [_loss(lr, clipped, steps, plan.seed) for lr in plan.each(RATES)]
        for clipped in (False, True)
    }
    largest = {
        clipped: max((lr for lr, x in zip(RATES, found, strict=True) if x < LEARNED), default=0)
        for clipped, found in losses.items()
    }
    ratio = largest[True] / largest[False] if largest[False] else math.nan
    measures.append(above("largest lr with over without AGC", ratio, 3.0))
    measures.append(above("check faults the largest lr without AGC", _faulted(RATES[-1], plan), 1))
    curves = [
        Curve("AGC" if clipped else "without", RATES, [min(x, 10.0) for x in found])
        for clipped, found in losses.items()
    ]
    header = ("activation", "gamma", "published", "relative difference")
    figure = Figure("lr", f"loss after {steps} steps, cut at 10", curves, "x")
    return Result(measures, header, rows, figure)


def _gamma(activation: nn.Module) -> float:
    z = torch.tensor(normal_grid()).requires_grad_()
    values = activation(z)
    (slopes,) = torch.autograd.grad(values.sum(), z)
    gain = gain_of(values.detach().numpy(), slopes.numpy(), normal_grid())
    return gain.standardising


def _loss(lr: float, clipped: bool, steps: int, seed: int) -> float:
    def optimizers(model: nn.Module) -> torch.optim.Optimizer:
        optimizer = sgd(lr)(model)
        if clipped:
            sg.guard(optimizer, sg.clip_agc(0.02, exclude=["18"]), model=model)
        return optimizer

    return last(trained(_net(seed), optimizers, steps, seed=seed))


def _net(seed: int) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    return plain([64, *[100] * 9, 10], nn.ReLU, normal(2.0, generator))


def _faulted(lr: float, plan: Plan) -> bool:
    net, (images, labels) = _net(plan.seed), digits()
    report = sg.check(
        net,
        loss=lambda m: nn.functional.cross_entropy(m(images[:64]), labels[:64]),
        optimizer=sgd(lr)(net),
    )
    return any(one.name == "lr-too-high" for one in report.findings)
