"""Networks, data and trainings that several experiments share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

Fill = Callable[[Tensor], object]  # fills a weight [fan_out, fan_in] in place
Optimizers = Callable[[nn.Module], torch.optim.Optimizer]


def digits() -> tuple[Tensor, Tensor]:
    """Load 1797 images [1797, 64], standardized, and labels [1797] of scikit-learn.

    Raises ModuleNotFoundError with what to install.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "expected scikit-learn for its digits, it is not installed: "
            "pip install 'steadygrad[lab]'"
        ) from error
    images, labels = load_digits(return_X_y=True)
    pixels = torch.tensor(images, dtype=torch.float32)
    return (pixels - pixels.mean()) / pixels.std(), torch.tensor(labels)


def normal(variance: float, generator: torch.Generator) -> Fill:
    """Return a fill with N(0, variance / fan_in)."""
    return lambda w: nn.init.normal_(w, std=math.sqrt(variance / w.shape[1]), generator=generator)


def orthogonal(variance: float, generator: torch.Generator) -> Fill:
    """Return a fill with an orthogonal matrix times sqrt(variance)."""
    return lambda w: nn.init.orthogonal_(w, gain=math.sqrt(variance), generator=generator)


def plain(
    widths: Sequence[int], activation: Callable[[], nn.Module], fill: Fill | None = None
) -> nn.Sequential:
    """Build linear layers of these widths, activations between them; a fill sets biases to 0."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        linear = nn.Linear(fan_in, fan_out)
        if fill is not None:
            fill(linear.weight.detach())
            nn.init.zeros_(linear.bias)
        layers += [linear, activation()]
    return nn.Sequential(*layers[:-1])


def linears(net: Iterable[nn.Module]) -> list[nn.Linear]:
    """Return the linear layers, first to last."""
    return [layer for layer in net if isinstance(layer, nn.Linear)]


def sgd(lr: float, momentum: float = 0.0) -> Optimizers:
    """Return what makes SGD of a model."""
    return lambda model: torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)


def trained(
    model: nn.Module,
    optimizers: Optimizers,
    steps: int,
    *,
    seed: int = 0,
    batch: int = 64,
    before: Callable[[int, torch.optim.Optimizer], None] | None = None,
) -> list[float]:
    """Train a model on the digits and return the loss of each step, inf from where it broke."""
    images, labels = digits()
    optimizer = optimizers(model)
    generator = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    for step in range(steps):
        if before is not None:
            before(step, optimizer)
        chosen = torch.randint(len(images), (batch,), generator=generator)
        loss = nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
        if not math.isfinite(loss.item()):
            return losses + [math.inf] * (steps - step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def last(losses: Sequence[float], count: int = 20) -> float:
    """Return the mean of the last losses."""
    tail = losses[-count:]
    return sum(tail) / len(tail)


def gradient_norms(model: nn.Sequential, x: Tensor, cotangent: Tensor) -> Iterator[float]:
    """Return |g| at the input of every linear layer, first to last, for a random cotangent."""
    inputs: list[Tensor] = []
    h = x.requires_grad_()
    for layer in model:
        if isinstance(layer, nn.Linear):
            inputs.append(h)
        h = layer(h)
    for one in torch.autograd.grad(h, inputs, cotangent):
        yield float(one.norm())


def slope_of(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the least-squares slope of ln y over ln x: the exponent of a power law."""
    a, b = (torch.tensor(one, dtype=torch.float64).log() for one in (x, y))
    a, b = a - a.mean(), b - b.mean()
    return float((a @ b) / (a @ a))
