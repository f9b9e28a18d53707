"""He 2015: a variance of 2 / fan_in trains 30 ReLU layers, where 1 / fan_in stalls."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

import steadygrad as sg
from steadygrad.core.theory import predicted_ratio
from steadygrad.lab.experiment import (
    Curve,
    Figure,
    Measure,
    Plan,
    Result,
    above,
    below,
    experiment,
    near,
)
from steadygrad.lab.nets import digits, gradient_norms, last, normal, plain, sgd, trained

CHANNELS = (64, 128, 128, 256, 256, 512, 512, 512, 512)  # outputs of conv2 to conv10 of VGG-B
SHRINKS = 1.7e4  # 5.9 * 4.2^2 * 2.9^2 * 2.1^4, as the paper rounds it


@experiment(
    "he2015",
    claim="With variance 2 / fan_in 30 ReLU layers converge; with Xavier's 1 / fan_in they stall",
    published="VGG-B with std 0.01: the gradient at conv2 is 1 / 1.7e4 of conv10's (sec. 2.2)",
    tolerance="3 % of 1.7e4, whose factors the paper rounds to two digits; 3 % of a factor per "
    "layer (one draw of 28 layers of width 128 varies by sqrt(5 / 28 / 128) / 2 = 2 %); a stalled "
    "loss is within 0.02 of ln 10, a converging one below 1.5, half way",
    source="He, Zhang, Ren & Sun 2015, Delving deep into rectifiers",
)
def he2015(plan: Plan) -> Result:
    """Measure the factor per layer, the product of figure 3's example, and train both nets.

    The paper's 30 layers are convolutions on ImageNet; here they are linear, 128 wide, on
    scikit-learn's digits. The VGG-B product is measured on its nine 3x3 layers, channels divided
    by 4 in both, with circular padding: without it the edges cost 4 % a layer.
    `steadygrad.check` is shown both nets before training: it must fault Xavier's and clear He's.
    """
    steps = plan.pick(10, 400, 3000)
    rows: list[list[object]] = []
    curves: list[Curve] = []
    measured: dict[str, tuple[float, float, bool]] = {}
    for name, variance in plan.each([("He", 2.0), ("Xavier", 1.0)]):
        generator = torch.Generator().manual_seed(plan.seed)
        net = plain([64, *[128] * 29, 10], nn.ReLU, normal(variance, generator))
        x, cotangent = (torch.randn(256, n, generator=generator) for n in (64, 10))
        norms = list(gradient_norms(net, x, cotangent))
        ratio = (norms[1] / norms[-1]) ** (1 / 28)
        ill = sg.check(net, digits()[0][:64]).verdict == "findings"
        loss = last(trained(net, sgd(0.01, 0.9), steps, seed=plan.seed))
        measured[name] = ratio, loss, ill
        rows.append([name, ratio, predicted_ratio(variance / 128, 128, 0.5), loss, ill])
        curves.append(Curve(name, range(1, 31), norms))
    measures = [
        near("VGG-B shrinks by", shrinkage(plan.seed), SHRINKS, 0.03),
        near("gradient ratio per layer, He", measured["He"][0], 1.0, 0.03),
        near("gradient ratio per layer, Xavier", measured["Xavier"][0], math.sqrt(0.5), 0.03),
        below("loss with He", measured["He"][1], 1.5),
        Measure("loss with Xavier", measured["Xavier"][1], 2.28, 2.33, math.log(10)),
        above("check faults Xavier and clears He", measured["Xavier"][2] - measured["He"][2], 1),
    ]
    header = ("init", "gradient ratio per layer", "theory", f"loss after {steps} steps", "faulted")
    return Result(measures, header, rows, Figure("layer", "gradient norm", curves, "y"))


def shrinkage(seed: int) -> float:
    """Return by how much more std 0.01 shrinks the gradient from conv10 to conv2 than He's does.

    Both nets have the same draws, scaled, so that the ratio is free of chance.
    """
    return math.exp(_log_gain(None, seed) - _log_gain(0.01, seed))


def _log_gain(std: float | None, seed: int) -> float:
    """Return ln |g at conv2's output| / |g at conv10's output|: the passage through 9 layers.

    The paper's std is taken at the paper's channels: it is multiplied by 2 for a quarter of them.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(8, 16, 8, 8, generator=generator).requires_grad_()
    h = x
    for channels in CHANNELS:
        fan_out = 9 * channels
        scale = 2 * std if std else 2 * math.sqrt(2 / fan_out)
        weight: Tensor = torch.randn(channels // 4, h.shape[1], 3, 3, generator=generator) * scale
        h = nn.functional.conv2d(nn.functional.pad(h, (1, 1, 1, 1), "circular"), weight).relu()
    cotangent = torch.randn(h.shape, generator=generator)
    (g,) = torch.autograd.grad(h, x, cotangent)
    return float((g.norm() / cotangent.norm()).log())
