"""Yang 2019: batch normalization without skips makes gradients explode with depth."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

import steadygrad as sg
from steadygrad.core.theory import batch_norm_factor, batch_norm_net_factor
from steadygrad.lab.experiment import Curve, Figure, Plan, Result, above, experiment, near

RELU = batch_norm_net_factor(0.5, 0.5 - 1 / (2 * math.pi))  # pi / (pi - 1) = 1.4669


@experiment(
    "yang2019",
    claim="In a batch-normalized ReLU network the gradient grows by 1.21 in each layer",
    published="squared gradient times pi / (pi - 1) = 1.467 per layer; (B - 2)/(B - 3) for the "
    "identity",
    tolerance="2 % of the ratio for ReLU, 3 % of the identity's factor: one draw at these widths",
    source="Yang, Pennington, Rao, Sohl-Dickstein & Schoenholz 2019, A mean field theory of batch "
    "normalization",
)
def yang2019(plan: Plan) -> Result:
    """Measure the factor per layer of [linear, BatchNorm, f] nets, and show one to `check`.

    The ReLU law is for infinite batches: it is measured with as many samples as units. The first
    two layers are left out, which still see the data.
    """
    width, depth = plan.pick(64, 512, 1024), plan.pick(8, 30, 60)
    norms = _norms(nn.functional.relu, width, width, depth, plan.seed)
    ratio = (norms[2] / norms[-1]) ** (1 / (depth - 3))
    measures = [near("gradient ratio per layer, ReLU", ratio, math.sqrt(RELU), 0.02)]
    rows = [["ReLU", width, ratio**2, RELU]]
    for batch in plan.each((8, 16)):
        found = _norms(lambda x: x, plan.pick(64, 1024, 2048), batch, 12, plan.seed)
        factor = (found[2] / found[-1]) ** (2 / 9)
        wanted = batch_norm_factor(1.0, batch)
        measures.append(near(f"squared ratio, identity, batch {batch}", factor, wanted, 0.03))
        rows.append(["identity", batch, factor, wanted])
    measures.append(above("check faults a net of 60 such layers", _faulted(plan.seed), 1))
    theory = [norms[-1] * RELU ** ((depth - 1 - layer) / 2) for layer in range(depth)]
    curves = [
        Curve("measured", range(1, depth + 1), norms),
        Curve("1.2112 per layer", range(1, depth + 1), theory, theory=True),
    ]
    header = ("activation", "batch", "squared ratio per layer", "theory")
    return Result(measures, header, rows, Figure("layer", "gradient norm", curves, "y"))


def _norms(
    activation: Callable[[Tensor], Tensor], width: int, batch: int, depth: int, seed: int
) -> list[float]:
    """Return |g| at the input of each layer, first to last."""
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(batch, width, generator=generator).requires_grad_()
    inputs = []
    for _ in range(depth):
        inputs.append(h)
        weight = torch.randn(width, width, generator=generator) / width**0.5
        h = activation(nn.functional.batch_norm(h @ weight, None, None, training=True))
    cotangent = torch.randn(h.shape, generator=generator)
    return [float(g.norm()) for g in torch.autograd.grad(h, inputs, cotangent)]


def _faulted(seed: int) -> bool:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for _ in range(60):
            layers += [nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU()]
        report = sg.check(nn.Sequential(*layers, nn.Linear(64, 10)), torch.randn(64, 64))
    return report.verdict == "findings"
