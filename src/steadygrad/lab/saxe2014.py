"""Saxe 2014: orthogonal weights learn in a time that does not depend on depth."""

from __future__ import annotations

import math
from functools import reduce

import torch
from torch import Tensor

from steadygrad.lab.experiment import Curve, Figure, Plan, Result, above, below, experiment
from steadygrad.lab.nets import digits

SHARES = (0.5, 0.35, 0.25, 0.125, 0.06, 0.03)  # learning rates, times the depth
LEARNED = 0.5  # of what a linear map can explain


@experiment(
    "saxe2014",
    claim="Deep linear networks with orthogonal weights learn in a time that levels off with "
    "depth; Gaussian ones slow down with depth",
    published="a deep net learns at most a finite time later than a shallow one, with orthogonal "
    "weights (section 2, figure 6)",
    tolerance="orthogonal, deepest over 10 layers, at most 1.5: the best of rates up to 2 apart is "
    "within sqrt(2) of the optimum, and steps are whole; a time in proportion to depth would be 6 "
    "times as long. Gaussian, deepest over shallowest: in proportion to depth that is 20, and half "
    "of it for the rates",
    source="Saxe, McClelland & Ganguli 2014, Exact solutions to the nonlinear dynamics of learning "
    "in deep linear neural networks",
)
def saxe2014(plan: Plan) -> Result:
    """Count the steps to half of what a linear map can explain, each depth at its best rate.

    Digits in place of MNIST, their inputs whitened, targets one-hot, full-batch descent from
    weights that keep the scale, as in the paper. With whitened inputs the loss is a constant plus
    |P - P*|^2 / 2, where P is the product of the weights and P* the best linear map: so it is
    computed, exactly. Learning rates are six shares of 1 / depth, as the optimal one goes. What did
    not learn within the steps counts as all of them. The time of orthogonal nets levels off: from 3
    to 10 layers it still grows by half.
    """
    depths = plan.pick((2, 4), (3, 10, 30, 60), (3, 10, 30, 100))
    most = plan.pick(20, 300, 1000)
    wanted = best_map()
    steps: dict[str, list[int]] = {"orthogonal": [], "Gaussian": []}
    for depth in plan.each(depths):
        for name, found in steps.items():
            best = most
            for share in SHARES:
                best = _steps(name, depth, share, wanted, best, plan.seed)
            found.append(best)
    orthogonal, gaussian = steps["orthogonal"], steps["Gaussian"]
    measures = [
        below("orthogonal: deepest over 10 layers", orthogonal[-1] / orthogonal[1], 1.5),
        above("Gaussian: deepest over shallowest", gaussian[-1] / gaussian[0], 10.0),
    ]
    rows = [[d, o, g] for d, o, g in zip(depths, orthogonal, gaussian, strict=True)]
    curves = [Curve(name, depths, found) for name, found in steps.items()]
    header = ("depth", "steps, orthogonal", "steps, Gaussian")
    return Result(
        measures,
        header,
        rows,
        Figure("depth", "steps to half of what can be explained", curves, "xy"),
    )


def best_map() -> Tensor:
    """Return the linear map [50, 10] from whitened digits to centered one-hot labels."""
    images, labels = digits()
    u, _, _ = torch.linalg.svd(images - images.mean(dim=0), full_matrices=False)
    x = u[:, :50] * math.sqrt(len(u))
    targets = torch.eye(10)[labels]
    best: Tensor = x.T @ (targets - targets.mean(dim=0)) / len(x)
    return best


def _steps(name: str, depth: int, share: float, wanted: Tensor, most: int, seed: int) -> int:
    """Return the steps until half of what can be explained is explained."""
    weights = _weights(depth, name, (wanted.shape[0], wanted.shape[1]), seed)
    goal = (1 - LEARNED) * float(wanted.square().sum())
    for step in range(most):
        product = reduce(torch.matmul, weights)
        apart = (product - wanted).square().sum()
        if not apart.isfinite():
            return most
        if float(apart.detach()) <= goal:
            return step
        slopes = torch.autograd.grad(apart / 2, weights)
        for weight, slope in zip(weights, slopes, strict=True):
            weight.detach().sub_(slope, alpha=share / depth)
    return most


def _weights(depth: int, name: str, ends: tuple[int, int], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = []
    for layer in range(depth):
        shape = (ends[0], ends[1] if layer == depth - 1 else ends[0])
        weight = torch.empty(shape)
        if name == "orthogonal":
            torch.nn.init.orthogonal_(weight, generator=generator)
        else:
            torch.nn.init.normal_(weight, std=shape[0] ** -0.5, generator=generator)
        weights.append(weight.requires_grad_())
    return weights
