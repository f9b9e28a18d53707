"""Wang 2022: DeepNorm bounds the first update of a Transformer at any depth."""

from __future__ import annotations

import torch
from torch import nn

from steadygrad.core.theory import deep_norm
from steadygrad.lab.experiment import Curve, Figure, Plan, Result, below, experiment
from steadygrad.lab.xiong2020 import Block, batch, loss_of, transformer

LR = 1e-4


@experiment(
    "wang2022",
    claim="DeepNorm bounds how far the first update moves the output, whatever the depth; post-LN "
    "moves further with depth",
    published="the update of the model is O(1) in depth with alpha = (2N)^(1/4), beta = "
    "(8N)^(-1/4) (figure 2)",
    tolerance="DeepNorm's move at most a tenth of post-LN's, an order of magnitude, at every depth "
    "from 12 on",
    source="Wang, Ma, Dong, Huang, Zhang & Wei 2022, DeepNet: scaling Transformers to 1,000 layers",
)
def wang2022(plan: Plan) -> Result:
    """Take one step of the gradient's signs (Adam's first) and measure the output's relative move.

    Blocks, data, and uniform attention are those of `xiong2020`, mean of three draws. That the move
    is O(1) in depth does not show here: from 6 to 48 layers DeepNorm's own still grows four-fold,
    post-LN's eight-fold. What does show is its size: a tenth of post-LN's and less.
    """
    depths = plan.pick((2, 4), (6, 12, 24, 48), (6, 12, 24, 48, 96))
    seeds = range(plan.seed, plan.seed + plan.pick(1, 3, 5))
    kinds = ("post", "pre", "DeepNorm")
    moves: dict[str, list[float]] = {kind: [] for kind in kinds}
    for depth in plan.each(depths):
        for kind, found in moves.items():
            found.append(sum(_moved(kind, depth, seed) for seed in seeds) / len(seeds))
    measures = [
        below(f"DeepNorm over post-LN, {depth} layers", ours / theirs, 0.1)
        for depth, ours, theirs in zip(depths, moves["DeepNorm"], moves["post"], strict=True)
        if depth >= 12 or plan.size == "tiny"
    ]
    rows = [[d, *row] for d, *row in zip(depths, *moves.values(), strict=True)]
    curves = [Curve(kind, depths, found) for kind, found in moves.items()]
    figure = Figure("layers", "relative move of the output in one step", curves, "xy")
    return Result(measures, ("layers", *kinds), rows, figure)


def _moved(kind: str, depth: int, seed: int) -> float:
    net = deepnet(depth, seed) if kind == "DeepNorm" else transformer(kind, depth, seed)
    x, _ = batch(seed)
    parameters = list(net.parameters())
    slopes = torch.autograd.grad(loss_of(net, seed), parameters)
    with torch.no_grad():
        before = net(x)
        for parameter, slope in zip(parameters, slopes, strict=True):
            parameter.sub_(slope.sign(), alpha=LR)
        return float((net(x) - before).norm() / before.norm())


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
