"""Cohen 2021: full-batch gradient descent hovers where the sharpness is 2 / lr."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

import steadygrad as sg
from steadygrad.core.theory import largest_stable_lr
from steadygrad.lab.experiment import Curve, Figure, Plan, Result, above, experiment, near
from steadygrad.lab.nets import digits

EVERY = 25  # steps between two looks at the sharpness
SAMPLES = 400


@experiment(
    "cohen2021",
    claim="In full-batch training the largest curvature rises to 2 / lr and stays there",
    published="sharpness 2 / lr (figure 1 and sec. 3)",
    tolerance="8 % of 2 / lr, the mean of the last third: the curve swings about it, and lies a "
    "little above by its curvature; it has risen by a fifth at least, so that the rise is seen",
    source="Cohen, Kaur, Li, Kolter & Talwalkar 2021, Gradient descent on neural networks "
    "typically occurs at the edge of stability",
)
def cohen2021(plan: Plan) -> Result:
    """Train a small tanh net on 400 digits by mean squared error, and follow the sharpness.

    By power iteration with Hessian-vector products, started from the last eigenvector. The paper's
    nets and CIFAR-10 are larger. `steadygrad.check` is shown the net at an lr of 30 times 2 over
    the first sharpness, which it must fault; and at a tenth of it, which it must not.
    """
    steps = plan.pick(100, 2400, 8000)
    rows, curves, measures = [], [], []
    for lr in plan.each(plan.pick((0.1,), (0.1, 0.07), (0.1, 0.05, 0.025))):
        losses, sharp = _followed(lr, steps, plan.seed)
        tail = sharp[-(len(sharp) // 3) :]
        settled = sum(tail) / len(tail)
        rises = sum(b > a for a, b in pairwise(losses)) / len(losses)
        measures.append(near(f"sharpness * lr / 2 at lr {lr:g}", settled * lr / 2, 1.0, 0.08))
        measures.append(above(f"risen, of its start, at lr {lr:g}", settled / sharp[0], 1.2))
        rows.append([lr, sharp[0], settled, 2 / lr, rises])
        looks = range(0, len(sharp) * EVERY, EVERY)
        curves.append(Curve(f"lr {lr:g}", looks, sharp))
        curves.append(Curve(f"2 / {lr:g}", looks, [2 / lr] * len(sharp), theory=True))
    bound = largest_stable_lr(float(rows[0][1]))
    faulted = _faulted(30 * bound, plan.seed) and not _faulted(bound / 10, plan.seed)
    measures.append(above("check faults 30 * 2 / sharpness, clears a tenth of it", faulted, 1))
    header = ("lr", "sharpness at first", "at last", "2 / lr", "share of steps that raise the loss")
    return Result(measures, header, rows, Figure("step", "sharpness", curves))


def _net(seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(64, 100), nn.Tanh(), nn.Linear(100, 100), nn.Tanh(), nn.Linear(100, 10)
        )


def _data() -> tuple[Tensor, Tensor]:
    images, labels = digits()
    return images[:SAMPLES], torch.eye(10)[labels[:SAMPLES]]


def _followed(lr: float, steps: int, seed: int) -> tuple[list[float], list[float]]:
    """Return the loss of each step and the sharpness of each look."""
    net, (x, y) = _net(seed), _data()
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(seed)
    vector = [torch.randn(p.shape, generator=generator) for p in net.parameters()]
    losses, sharp = [], []
    for step in range(steps):
        loss = (net(x) - y).square().sum(dim=1).mean() / 2
        if step % EVERY == 0:
            value, vector = _sharpness(loss, list(net.parameters()), vector, 30 if step == 0 else 8)
            sharp.append(value)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, sharp


def _sharpness(
    loss: Tensor, parameters: list[nn.Parameter], vector: list[Tensor], rounds: int
) -> tuple[float, list[Tensor]]:
    """Return the largest eigenvalue of the Hessian and its vector, by power iteration."""
    slopes = torch.autograd.grad(loss, parameters, create_graph=True)
    value = math.nan
    for _ in range(rounds):
        norm = torch.stack([v.square().sum() for v in vector]).sum().sqrt()
        vector = [v / norm for v in vector]
        product = torch.autograd.grad(slopes, parameters, vector, retain_graph=True)
        value = float(sum((a * b).sum() for a, b in zip(product, vector, strict=True)))
        vector = list(product)
    return value, vector


def _faulted(lr: float, seed: int) -> bool:
    net, (x, y) = _net(seed), _data()
    report = sg.check(
        net,
        loss=lambda m: (m(x) - y).square().sum(dim=1).mean() / 2,
        optimizer=torch.optim.SGD(net.parameters(), lr=lr),
    )
    return any(one.name == "lr-too-high" for one in report.findings)
