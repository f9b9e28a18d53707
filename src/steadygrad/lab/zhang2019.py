"""Zhang 2019: Fixup trains deep residual networks without normalization."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

import steadygrad as sg
from steadygrad.core.theory import fixup_scale
from steadygrad.lab.experiment import Curve, Figure, Plan, Result, above, below, experiment, near
from steadygrad.lab.nets import digits, last, linears, sgd, trained

WIDTH = 64


class Residual(nn.Module):
    """Blocks x + F(x), F two linear layers with a ReLU between, without normalization.

    Of the kinds, `fixup` scales the first layer by L^(-1/2) and starts the second, and the head, at
    zero; `skipinit` starts the multiplier of every branch at 0 (De 2020); `he` has He's variance in
    both layers. All have one scalar bias and one multiplier a block, and the layers' own biases.
    """

    def __init__(self, blocks: int, kind: str, seed: int, width: int = WIDTH) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.stem, self.head = nn.Linear(64, width), nn.Linear(width, 10)
        self.first, self.second = (
            nn.ModuleList([nn.Linear(width, width) for _ in range(blocks)]) for _ in range(2)
        )
        self.scale = nn.Parameter(torch.full((blocks,), 0.0 if kind == "skipinit" else 1.0))
        self.shift = nn.Parameter(torch.zeros(blocks))
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, generator=generator)
                nn.init.zeros_(layer.bias)
        if kind == "fixup":
            self._fix(blocks)

    def _fix(self, blocks: int) -> None:
        with torch.no_grad():
            for one, two in zip(linears(self.first), linears(self.second), strict=True):
                one.weight.mul_(fixup_scale(blocks, 2))
                two.weight.zero_()
            self.head.weight.zero_()

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the stream after the stem and after each block, [batch, width] each."""
        h = self.stem(x)
        stream = [h]
        layers = zip(linears(self.first), linears(self.second), self.scale, self.shift, strict=True)
        for one, two, scale, shift in layers:
            h = h + scale * two(one(h.relu() + shift).relu())
            stream.append(h)
        return stream

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [batch, 10]."""
        logits: Tensor = self.head(self.features(x)[-1].relu())
        return logits


@experiment(
    "zhang2019",
    claim="Without normalization a residual network explodes with depth; Fixup keeps its scale and "
    "trains it",
    published="variance at least doubles in each He block (sec. 2); 10,000 layers train (sec. 4.1)",
    tolerance="10 % of the second moment's factor 2 per block, one draw of width 512 over 20 "
    "blocks; Fixup's loss below 0.5 where He's is above ln 10 at every rate tried",
    source="Zhang, Dauphin & Ma 2019, Fixup initialization: residual learning without "
    "normalization",
)
def zhang2019(plan: Plan) -> Result:
    """Follow the stream through residual blocks, and train 50 of them with and without Fixup.

    Linear layers on digits; the best of three learning rates for both. `check` must fault He's net
    and not Fixup's. The factor 2 is an expectation: a typical draw grows less, by 9 % a block at
    width 64, so that it is measured at width 512.
    """
    blocks, steps = plan.pick(4, 50, 200), plan.pick(5, 200, 2000)
    images, _ = digits()
    rows, curves, losses, ill = [], [], {}, {}
    growth = _growth(plan.pick(32, 512, 1024), plan.seed)
    for kind in plan.each(("he", "fixup")):
        net = Residual(blocks, kind, plan.seed)
        with torch.no_grad():
            moments = [float(h.square().mean()) for h in net.features(images[:256])]
        losses[kind] = min(
            last(trained(Residual(blocks, kind, plan.seed), sgd(lr), steps, seed=plan.seed))
            for lr in (1e-4, 1e-2, 1e-1)
        )
        ill[kind] = sg.check(net, images[:64]).verdict == "findings"
        rows.append([kind, moments[-1], losses[kind], ill[kind]])
        curves.append(Curve(kind, range(blocks + 1), moments))
    measures = [
        near("second moment's factor per He block", growth, 2.0, 0.10),
        below("loss with Fixup", losses["fixup"], 0.5),
        above("loss with He", losses["he"], math.log(10)),
        above("check faults He's net and not Fixup's", ill["he"] - ill["fixup"], 1),
    ]
    header = (
        "init",
        f"second moment after {blocks} blocks",
        f"loss after {steps} steps",
        "faulted",
    )
    return Result(measures, header, rows, Figure("block", "second moment", curves, "y"))


def _growth(width: int, seed: int, blocks: int = 20) -> float:
    """Return the second moment's factor per block of a He net."""
    images, _ = digits()
    with torch.no_grad():
        stream = Residual(blocks, "he", seed, width).features(images[:256])
    return float((stream[-1].square().mean() / stream[0].square().mean()) ** (1 / blocks))
