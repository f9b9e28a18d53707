"""De 2020: SkipInit, one multiplier at zero on each branch, trains what normalization trains."""

from __future__ import annotations

import torch
from torch import nn

import steadygrad as sg
from steadygrad.core.theory import normalized_residual_factor
from steadygrad.lab.experiment import Curve, Figure, Plan, Result, above, below, experiment, near
from steadygrad.lab.nets import digits, last, sgd, trained
from steadygrad.lab.zhang2019 import Residual


@experiment(
    "de2020",
    claim="Batch normalization makes a residual stream grow with depth and not exponentially; a "
    "multiplier of 0 on each branch does as much",
    published="variance l + 1 after l normalized blocks (sec. 3); SkipInit trains 1000 layers "
    "(table 1)",
    tolerance="10 % of l + 1, one draw of width 512; SkipInit's loss below 0.5",
    source="De & Smith 2020, Batch normalization biases residual blocks towards the identity "
    "function in deep networks",
)
def de2020(plan: Plan) -> Result:
    """Follow the variance through normalized blocks, and train 50 blocks with SkipInit.

    A block is x + W relu(BN(x)) with He's W, on N(0, 1); its branch has second moment 1. The net
    that is trained is that of `zhang2019`, whose unnormalized He arm does not train.
    """
    blocks, steps = plan.pick(4, 50, 200), plan.pick(5, 200, 2000)
    variances = _variances(blocks, plan.pick(64, 512, 1024), plan.seed)
    theory = [normalized_residual_factor(block) for block in range(blocks + 1)]
    losses = {
        lr: last(trained(Residual(blocks, "skipinit", plan.seed), sgd(lr), steps, seed=plan.seed))
        for lr in plan.each((1e-2, 1e-1))
    }
    net = Residual(blocks, "skipinit", plan.seed)
    clear = sg.check(net, digits()[0][:64]).verdict == "healthy"
    measures = [
        near(f"variance after {blocks} blocks", variances[-1], theory[-1], 0.10),
        below("loss with SkipInit", min(losses.values()), 0.5),
        above("check clears SkipInit's net", clear, 1),
    ]
    rows = [[n, variances[n], theory[n]] for n in sorted({1, 2, 4, blocks // 2, blocks})]
    depth = range(blocks + 1)
    curves = [
        Curve("measured", depth, variances),
        Curve("l + 1", depth, theory, theory=True),
        Curve("2^l without normalization", depth[:12], [2.0**n for n in depth[:12]], theory=True),
    ]
    figure = Figure("blocks l", "variance of the stream", curves, "y")
    return Result(measures, ("blocks", "variance", "theory"), rows, figure)


def _variances(blocks: int, width: int, seed: int) -> list[float]:
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(512, width, generator=generator)
    found = [float(h.var())]
    for _ in range(blocks):
        branch = nn.functional.batch_norm(h, None, None, training=True).relu()
        h = h + branch @ torch.randn(width, width, generator=generator) * (2 / width) ** 0.5
        found.append(float(h.square().mean()))
    return found
