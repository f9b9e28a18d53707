"""Yang 2021: in muP an update is as large at any width; in standard scaling it grows."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from steadygrad.lab.experiment import (
    Curve,
    Figure,
    Measure,
    Plan,
    Result,
    above,
    experiment,
)
from steadygrad.lab.nets import digits, slope_of

STEPS, LR, BASE = 4, 0.01, 64
DRAWS = 3


@experiment(
    "yang2021",
    claim="With one learning rate Adam moves wide layers further in the standard scaling; muP "
    "keeps the move of every width alike",
    published="coordinate check: flat in width for muP, growing for the standard one",
    tolerance="slope 0 to within 0.1 for muP, a factor 1.3 over widths 64 to 1024; at least 0.3 "
    "for the standard scaling, whose limit at infinite width is 1 and at first less",
    source="Yang, Hu, Babuschkin, Sidor, Liu, Farhi, Ryder, Pachocki, Chen & Gao 2021, Tensor "
    "programs V: tuning large neural networks via zero-shot hyperparameter transfer",
)
def yang2021(plan: Plan) -> Result:
    """Train MLPs of five widths for four Adam steps on digits; measure how far the output moves.

    The slope is of ln (root mean square move of the logits) over ln width, least squares, mean of
    three draws. muP: hidden learning rate times 64 / width, head's too, and the head's weights
    start at variance 64 / width^2.
    """
    widths = plan.pick((64, 128), (64, 128, 256, 512, 1024), (64, 256, 1024, 4096))
    moves: dict[str, list[float]] = {"standard": [], "muP": []}
    for width in plan.each(widths):
        for name, found in moves.items():
            draws = [_moved(name, width, plan.seed + draw) for draw in range(DRAWS)]
            found.append(sum(draws) / DRAWS)
    slopes = {name: slope_of(widths, found) for name, found in moves.items()}
    measures = [
        Measure("slope over width, muP", slopes["muP"], -0.1, 0.1, 0.0),
        above("slope over width, standard", slopes["standard"], 0.3),
    ]
    rows = [[w, *pair] for w, *pair in zip(widths, *moves.values(), strict=True)]
    curves = [Curve(name, widths, found) for name, found in moves.items()]
    figure = Figure("width", "root mean square move of the logits", curves, "xy")
    return Result(measures, ("width", "move, standard", "move, muP"), rows, figure)


def _moved(name: str, width: int, seed: int) -> float:
    generator = torch.Generator().manual_seed(seed)
    layers = [nn.Linear(a, b) for a, b in ((64, width), (width, width), (width, 10))]
    for layer in layers:
        nn.init.normal_(layer.weight, std=layer.in_features**-0.5, generator=generator)
        nn.init.zeros_(layer.bias)
    if name == "muP":
        layers[-1].weight.detach().mul_(math.sqrt(BASE / width))
    net = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    optimizer = torch.optim.Adam(list(_groups(layers, BASE / width if name == "muP" else 1.0)))
    x, y = (one[:256] for one in digits())
    before = net(x).detach()
    for _ in range(STEPS):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    move: Tensor = (net(x).detach() - before).square().mean().sqrt()
    return float(move)


def _groups(layers: list[nn.Linear], share: float) -> Iterator[dict[str, object]]:
    """Yield a parameter group of each layer; weights that see the width take a share of the lr."""
    for place, layer in enumerate(layers):
        yield {"params": [layer.weight], "lr": LR * (share if place else 1.0)}
        yield {"params": [layer.bias], "lr": LR}
