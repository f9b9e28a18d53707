"""Ioffe 2015: with batch normalization a network trains at learning rates that break it without."""

from __future__ import annotations

import math

import torch
from torch import nn

import steadygrad as sg
from steadygrad.lab.experiment import Curve, Figure, Plan, Result, above, experiment
from steadygrad.lab.nets import digits, last, sgd, trained

RATES = [1e-2 * 10 ** (k / 2) for k in range(8)]
LEARNED = 1.0  # a loss that is better than ln 10 = 2.303 by more than half


@experiment(
    "ioffe2015",
    claim="Batch normalization tolerates a learning rate many times larger",
    published="5 times the baseline's learning rate trains, and 30 times (BN-x5, BN-x30, sec. "
    "4.2.2)",
    tolerance="at least 5 times, the smaller of the paper's two; the grid's step is 3.2",
    source="Ioffe & Szegedy 2015, Batch normalization",
)
def ioffe2015(plan: Plan) -> Result:
    """Train 6 ReLU layers with and without normalization at 8 learning rates from 0.01 to 32.

    An lr is tolerated when the last loss is below 1.0. The digits are easier than ImageNet, and
    He's initialization is used in both, which the paper's baseline lacked: here the ratio is of
    the largest rates that train at all, not of those that train best. At the largest lr that only
    batch normalization tolerates, `check` must fault the network without.
    """
    steps = plan.pick(5, 200, 2000)
    losses: dict[bool, list[float]] = {False: [], True: []}
    for lr in plan.each(RATES):
        for normalized, found in losses.items():
            found.append(last(trained(_net(normalized, plan.seed), sgd(lr), steps, seed=plan.seed)))
    largest = {
        normalized: max((lr for lr, x in zip(RATES, found, strict=True) if x < LEARNED), default=0)
        for normalized, found in losses.items()
    }
    ratio = largest[True] / largest[False] if largest[False] else math.nan
    measures = [
        above("largest lr with over without normalization", ratio, 5.0),
        above("check faults the plain net there", _faulted(largest[True], plan.seed), 1),
    ]
    rows = [[lr, losses[False][n], losses[True][n]] for n, lr in enumerate(RATES)]
    curves = [
        Curve("batch norm" if normalized else "plain", RATES, [min(x, 10.0) for x in found])
        for normalized, found in losses.items()
    ]
    header = ("lr", "loss, plain", "loss, batch norm")
    figure = Figure("lr", f"loss after {steps} steps, cut at 10", curves, "x")
    return Result(measures, header, rows, figure)


def _net(normalized: bool, seed: int) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for place in range(6):
        linear = nn.Linear(64 if place == 0 else 100, 100)
        nn.init.kaiming_normal_(linear.weight, generator=generator)
        nn.init.zeros_(linear.bias)
        layers += [linear, *([nn.BatchNorm1d(100)] if normalized else []), nn.ReLU()]
    head = nn.Linear(100, 10)
    nn.init.normal_(head.weight, std=0.1, generator=generator)
    nn.init.zeros_(head.bias)
    return nn.Sequential(*layers, head)


def _faulted(lr: float, seed: int) -> bool:
    images, labels = digits()
    net = _net(False, seed)
    report = sg.check(
        net,
        loss=lambda m: nn.functional.cross_entropy(m(images[:64]), labels[:64]),
        optimizer=torch.optim.SGD(net.parameters(), lr=max(lr, RATES[0])),
    )
    return any(one.name == "lr-too-high" for one in report.findings)
