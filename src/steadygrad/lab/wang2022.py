"""Wang 2022: DeepNorm keeps the first update of a deep post-LN Transformer small."""

from __future__ import annotations

from statistics import geometric_mean

import torch
from torch import nn

from steadygrad.core.theory import deep_norm
from steadygrad.lab.experiment import Curve, Figure, Measure, Plan, Result, experiment
from steadygrad.lab.xiong2020 import Block, batch, transformer

LR = 1e-6  # so small that the move is proportional to it
SPREAD = 10**0.5  # half an order


@experiment(
    "wang2022",
    claim="A step of gradient descent moves the output of a post-LN Transformer by an amount that "
    "grows with its depth N; with DeepNorm the move is bounded",
    published="moves bounded by 2N (v^2 + w^2) / alpha^2: 4N for post-LN with v = w = 1, 1 for "
    "DeepNorm with alpha = (2N)^(1/4), v = w = (8N)^(-1/4) (section 4.3)",
    tolerance="half an order either way of 1 / (4N), as it is the ratio of two bounds and not of "
    "moves",
    source="Wang, Ma, Dong, Huang, Zhang & Wei 2022, DeepNet: scaling Transformers to 1,000 layers",
)
def wang2022(plan: Plan) -> Result:
    """Take one small step of descent and measure the output's move, over the learning rate.

    Blocks, data, and uniform attention are those of `xiong2020`; the geometric mean of several
    draws, as moves of post-LN nets differ ten-fold between draws. That DeepNorm's move is O(1) in
    depth does not show here: from 6 to 48 layers it grows six-fold, post-LN's over twenty-fold.
    What does show is how far they are apart.
    """
    depths = plan.pick((2, 4), (6, 12, 24, 48), (6, 12, 24, 48, 96))
    seeds = range(plan.seed, plan.seed + plan.pick(1, 8, 20))
    kinds = ("post", "pre", "DeepNorm")
    moves: dict[str, list[float]] = {kind: [] for kind in kinds}
    for depth in plan.each(depths):
        for kind, found in moves.items():
            found.append(geometric_mean([_moved(kind, depth, seed) for seed in seeds]))
    ratios = [a / b for a, b in zip(moves["DeepNorm"], moves["post"], strict=True)]
    measures = [_measure(depth, ratio) for depth, ratio in zip(depths, ratios, strict=True)]
    rows = [[d, *row] for d, *row in zip(depths, *moves.values(), ratios, strict=True)]
    curves = [Curve(kind, depths, found) for kind, found in moves.items()]
    figure = Figure("layers", "move of the output over the learning rate", curves, "xy")
    return Result(measures, ("layers", *kinds, "DeepNorm over post"), rows, figure)


def _measure(depth: int, ratio: float) -> Measure:
    wanted = 1 / (4 * depth)
    name = f"DeepNorm over post-LN, {depth} layers"
    return Measure(name, ratio, wanted / SPREAD, wanted * SPREAD, wanted)


def _moved(kind: str, depth: int, seed: int) -> float:
    """Return the root mean square of the output's move in float64, over the learning rate."""
    net = deepnet(depth, seed) if kind == "DeepNorm" else transformer(kind, depth, seed)
    net = net.double()
    x, y = batch(seed)
    x = x.double()
    parameters = list(net.parameters())
    loss = nn.functional.cross_entropy(net(x).flatten(0, 1), y.flatten())
    slopes = torch.autograd.grad(loss, parameters)
    with torch.no_grad():
        before = net(x)
        for parameter, slope in zip(parameters, slopes, strict=True):
            parameter.sub_(slope, alpha=LR)
        return float((net(x) - before).square().mean().sqrt()) / LR


def deepnet(depth: int, seed: int) -> nn.Sequential:
    """Build a post-LN Transformer with DeepNorm's scales on skips and on v, out, up, and down."""
    scales = deep_norm(depth)
    net = transformer("post", depth, seed, skip=scales.alpha)
    with torch.no_grad():
        for block in net:
            if isinstance(block, Block):
                for layer in (block.value, block.out, block.up, block.down):
                    layer.weight *= scales.beta
    return net
