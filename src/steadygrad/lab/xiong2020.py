"""Xiong 2020: the last layer's gradient at the start, in post-LN and pre-LN Transformers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import steadygrad as sg
from steadygrad.lab.experiment import Curve, Figure, Measure, Plan, Result, above, experiment
from steadygrad.lab.nets import slope_of

WIDTH, TOKENS, BATCH = 32, 16, 16
TOO_FAST = ("lr-too-high", "missing-warmup")


@experiment(
    "xiong2020",
    claim="At the start the last feed-forward gradient is O(1) in a post-LN Transformer, whatever "
    "its depth, and O(1 / sqrt(L)) in a pre-LN one: the former needs warm-up",
    published="O(d sqrt(ln d)) post-LN, O(d sqrt(ln d / L)) pre-LN (theorem 1)",
    tolerance="0.1 of the exponent -1/2: a layer adds 0.38 to the stream's variance, which begins "
    "at 1, so that -1/2 is -0.43 over these depths; post-LN's exponent is to be nearer to 0 than "
    "to -1/2, so within 0.25",
    source="Xiong, Yang, He, Zheng, Zheng, Xing, Zhang, Lan, Wang & Liu 2020, On layer "
    "normalization in the Transformer architecture",
)
def xiong2020(plan: Plan) -> Result:
    """Take the gradient of the last feed-forward matrix at depths 6 to 48, twelve draws each.

    As in the paper's analysis attention is uniform at the start (zero queries and keys), Xavier
    initialization, and a final norm after the pre-LN blocks. The theorem bounds the
    post-LN gradient from above; it does not stay the same, but grows by a third over a factor 8
    of depth.
    `check` is shown 12 layers of both with Adam at 0.01, without warm-up: it must fault the lr,
    or the missing warm-up, of the post-LN net alone. What a warm-up then makes of it in a whole
    training is not looked at.
    """
    depths = plan.pick((2, 4), (6, 12, 24, 48), (6, 12, 24, 48, 96))
    draws = plan.pick(1, 12, 24)
    found: dict[str, list[float]] = {"post": [], "pre": []}
    for depth in plan.each(depths):
        for kind, norms in found.items():
            seeds = range(plan.seed, plan.seed + draws)
            norms.append(sum(_norm(kind, depth, seed) for seed in seeds) / draws)
    scaled = [norm * depth**0.5 for norm, depth in zip(found["pre"], depths, strict=True)]
    exponent, flat = slope_of(depths, found["pre"]), slope_of(depths, found["post"])
    measures = [
        Measure("exponent of the depth, pre-LN", exponent, -0.6, -0.4, -0.5),
        Measure("exponent of the depth, post-LN", flat, -0.25, 0.25, 0.0),
        above("check faults Adam at 0.01 on post-LN, not on pre-LN", _told_apart(plan), 1),
    ]
    rows = [[d, *pair] for d, *pair in zip(depths, found["post"], scaled, strict=True)]
    curves = [Curve(f"{kind}-LN", depths, norms) for kind, norms in found.items()]
    header = ("layers", "gradient, post-LN", "gradient * sqrt(L), pre-LN")
    figure = Figure("layers", "gradient norm of the last feed-forward matrix", curves, "xy")
    return Result(measures, header, rows, figure)


class Block(nn.Module):
    """A Transformer layer with uniform attention, its norms before or after the sums.

    `skip` multiplies the skip paths, as DeepNorm does.
    """

    def __init__(self, kind: str, generator: torch.Generator, skip: float = 1.0) -> None:
        super().__init__()
        self.kind, self.skip = kind, skip
        self.value, self.out = (_linear(WIDTH, WIDTH, generator) for _ in range(2))
        self.up = _linear(WIDTH, 4 * WIDTH, generator)
        self.down = _linear(4 * WIDTH, WIDTH, generator)
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)])

    def forward(self, x: Tensor) -> Tensor:
        """Attend, then feed forward; [batch, tokens, width]."""
        return self._added(self._added(x, self._attend, 0), self._feed, 1)

    def _added(self, x: Tensor, branch: Callable[[Tensor], Tensor], place: int) -> Tensor:
        norm = self.norms[place]
        total: Tensor
        if self.kind == "pre":
            total = self.skip * x + branch(norm(x))
        else:
            total = norm(self.skip * x + branch(x))
        return total

    def _attend(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.value(x).mean(dim=1, keepdim=True)).expand_as(x)
        return out

    def _feed(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(self.up(x).relu())
        return out


def transformer(kind: str, depth: int, seed: int, skip: float = 1.0) -> nn.Sequential:
    """Build blocks, a final norm after pre-LN ones, and a head."""
    generator = torch.Generator().manual_seed(seed)
    blocks: list[nn.Module] = [Block(kind, generator, skip) for _ in range(depth)]
    final = [nn.LayerNorm(WIDTH)] if kind == "pre" else []
    return nn.Sequential(*blocks, *final, _linear(WIDTH, WIDTH, generator))


def batch(seed: int) -> tuple[Tensor, Tensor]:
    """Draw inputs [batch, tokens, width] and a target class for each token."""
    generator = torch.Generator().manual_seed(seed + 1)
    x = torch.randn(BATCH, TOKENS, WIDTH, generator=generator)
    return x, torch.randint(WIDTH, (BATCH, TOKENS), generator=generator)


def loss_of(model: nn.Module, seed: int) -> Tensor:
    """Return the mean cross-entropy over tokens."""
    x, y = batch(seed)
    return nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())


def _norm(kind: str, depth: int, seed: int) -> float:
    net = transformer(kind, depth, seed)
    last = [one for one in net if isinstance(one, Block)][-1]
    (g,) = torch.autograd.grad(loss_of(net, seed), [last.down.weight])
    return float(g.norm())


def _told_apart(plan: Plan) -> bool:
    faulted = {}
    for kind in ("post", "pre"):
        net = transformer(kind, plan.pick(2, 12, 12), plan.seed)
        report = sg.check(
            net,
            loss=lambda m: loss_of(m, plan.seed),
            optimizer=torch.optim.Adam(net.parameters(), lr=0.01),
        )
        faulted[kind] = any(one.name in TOO_FAST for one in report.findings)
    return faulted["post"] and not faulted["pre"]


def _linear(fan_in: int, fan_out: int, generator: torch.Generator) -> nn.Linear:
    linear = nn.Linear(fan_in, fan_out)
    nn.init.xavier_normal_(linear.weight, generator=generator)
    nn.init.zeros_(linear.bias)
    return linear
