"""Move all parameters of a model at once, and weigh out which gradient is wrong.

A directional derivative is linear: with c_k the error of parameter k's gradient along its part of
a direction v, moving along v shows d_0 = sum c_k. Moving each part k times as far shows
d_1 = sum k c_k. Where one parameter k is wrong, d_1 / d_0 = k names it, whatever their number.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

STEP = 3e-8
"""Share of a parameter's size by which it is moved. Shorter than the eps^(1/3) = 6e-6 that suits a
smooth loss: there a ReLU network of 1.3 M parameters crosses kinks, which cost 2e-3 of the
derivative; here it crosses none, and rounding costs 1e-7 (both measured)."""


ROUNDED = 16  # machine epsilons of the loss: what its own arithmetic may lose; chosen by us


@dataclass(frozen=True, slots=True)
class Derivative:
    """A derivative along one direction: autograd's, the differences', and the latter's error."""

    analytic: float
    numeric: float
    error: float

    @property
    def apart(self) -> float:
        """How much too large autograd's is."""
        return self.analytic - self.numeric


@dataclass(frozen=True, slots=True)
class Weighed:
    """What was found along one direction, and which parameters are wrong.

    `scale` is the root of the sum of the squared parts of the derivative, one a parameter: what
    the whole would be if the parts did not cancel. `count` is the number of single parameters.
    """

    total: Derivative
    wrong: tuple[str, ...]
    scale: float
    count: int
    passes: int


def weigh(
    model: nn.Module,
    inputs: Any,  # a tensor, a tuple, or a mapping, as in steadygrad.check
    loss: Callable[[nn.Module], Tensor] | None,
    tolerance: float,
    seed: int,
) -> Weighed:
    """Compare autograd and differences along one direction; where they differ, find out where."""
    devices = {p.device.index for p in model.parameters() if p.is_cuda}
    with torch.random.fork_rng(devices=sorted(devices)), _doubled(model) as copied:
        run = loss if loss is not None else _summed(inputs, seed)
        scales = _Scales(copied, run, seed)
        total = scales.total()
        size = max(abs(total.analytic), abs(total.numeric), scales.scale)
        limit = tolerance * size + 3 * total.error
        wrong: Sequence[int] = ()
        if abs(total.apart) > limit:
            every = range(len(scales.names))
            halved = _single(scales, total, limit) or _halved(scales, every, total.apart, limit)
            wrong = halved or every  # each a little
        names = tuple(scales.names[place] for place in wrong)
        return Weighed(total, names, scales.scale, scales.count, scales.passes)


def _single(scales: _Scales, total: Derivative, limit: float) -> Sequence[int]:
    """Return the one parameter that explains the whole disagreement, or nothing."""
    ramp = np.arange(1, len(scales.names) + 1) / len(scales.names)
    ratio = scales.apart(ramp) / total.apart
    place = round(ratio * len(scales.names)) - 1
    if not 0 <= place < len(scales.names):
        return ()
    alone = scales.apart(np.eye(len(scales.names))[place])
    return (place,) if abs(alone - total.apart) <= max(limit, 1e-2 * abs(total.apart)) else ()


def _halved(scales: _Scales, places: Sequence[int], apart: float, limit: float) -> tuple[int, ...]:
    """Return all wrong parameters: measure the first half, and know the second by subtraction."""
    if len(places) == 1:
        return tuple(places) if abs(apart) > limit else ()
    first, second = places[: len(places) // 2], places[len(places) // 2 :]
    weights = np.zeros(len(scales.names))
    weights[list(first)] = 1.0
    half = scales.apart(weights)
    found = _halved(scales, first, half, limit) if abs(half) > limit else ()
    rest = apart - half
    return (*found, *(_halved(scales, second, rest, limit) if abs(rest) > limit else ()))


@dataclass(slots=True)
class _Scales:
    """A float64 model, its gradient, and one direction, of which parts can be weighed."""

    model: nn.Module
    run: Callable[[nn.Module], Tensor]
    seed: int
    passes: int = 0
    scale: float = 0.0
    rounding: float = 0.0
    names: list[str] = field(default_factory=list)
    parts: list[float] = field(default_factory=list)
    directions: list[Tensor] = field(default_factory=list)
    starts: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Take autograd's gradient once and draw the direction."""
        named = _real_parameters(self.model)
        for _, parameter in named:
            parameter.grad = None
        with torch.enable_grad():
            loss = self._loss()
        if not loss.requires_grad:
            raise ValueError(
                "expected a loss that depends on the model's parameters, got one without a graph: "
                "run the model that the loss is given, outside of no_grad"
            )
        loss.backward()
        self.rounding = ROUNDED * float(torch.finfo(torch.float64).eps * loss.detach().abs()) / STEP
        self.names = [name for name, _ in named]
        self.starts = [p.detach().clone() for _, p in named]
        self.directions = _directions(self.starts, self.seed)
        for (_, p), direction in zip(named, self.directions, strict=True):
            self.parts.append(0.0 if p.grad is None else float((p.grad * direction).sum()))
        self.scale = float(np.linalg.norm(self.parts))

    @property
    def count(self) -> int:
        return sum(start.numel() for start in self.starts)

    def total(self) -> Derivative:
        """Return the derivative along the whole direction, with its error from two steps.

        Two steps can agree by chance, so the error is at least what rounding of the loss costs.
        """
        ones = np.ones(len(self.names))
        near, far = self._numeric(ones, STEP), self._numeric(ones, 2 * STEP)
        return Derivative(sum(self.parts), near, max(abs(far - near), self.rounding))

    def apart(self, weights: np.typing.NDArray[np.float64]) -> float:
        """Return by how much autograd's derivative along weighted parts is too large."""
        return float(weights @ self.parts) - self._numeric(weights, STEP)

    def _numeric(self, weights: np.typing.NDArray[np.float64], step: float) -> float:
        return (self._at(weights * step) - self._at(-weights * step)) / (2 * step)

    @torch.no_grad()
    def _at(self, shares: np.typing.NDArray[np.float64]) -> float:
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        moves = zip(parameters, self.starts, self.directions, shares.tolist(), strict=True)
        for parameter, start, direction, share in moves:
            torch.add(start, direction, alpha=share, out=parameter)
        value = float(self._loss())
        for parameter, start in zip(parameters, self.starts, strict=True):
            parameter.copy_(start)
        return value

    def _loss(self) -> Tensor:
        self.passes += 1
        torch.manual_seed(self.seed)
        value = self.run(self.model)
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"expected loss(model) to return one number as a tensor, got {got}")
        return value.reshape(())


def _real_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the parameters that are trained; raise where there are none, or complex ones."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise ValueError("expected a model with parameters that need gradients, it has none")
    for name, parameter in named:
        if parameter.is_complex():
            raise TypeError(f"expected real parameters, got {name}, which is complex")
    return named


def _directions(starts: Sequence[Tensor], seed: int) -> list[Tensor]:
    """Draw N(0, s^2) for each parameter, s its root mean square; zeros take the others' median."""
    generator = torch.Generator().manual_seed(seed + 1)
    sizes = [float(start.square().mean().sqrt()) if start.numel() else 0.0 for start in starts]
    known = [size for size in sizes if size > 0]
    usual = float(np.median(known)) if known else 1.0
    return [
        (torch.randn(start.shape, generator=generator, dtype=torch.float64) * (size or usual)).to(
            start.device
        )
        for start, size in zip(starts, sizes, strict=True)
    ]


@contextmanager
def _doubled(model: nn.Module) -> Iterator[nn.Module]:
    """Yield a float64 copy whose modules take float64 whatever they are given."""
    copied = copy.deepcopy(model).double()
    for module in copied.modules():
        module.register_forward_pre_hook(_widen, with_kwargs=True)
    yield copied


def _widen(_: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:  # whatever forward takes
    return _wide(args), _wide(kwargs)


def _wide(tree: Any) -> Any:  # tensors in tuples, lists, and mappings
    if isinstance(tree, Tensor):
        return tree.double() if tree.is_floating_point() else tree
    if type(tree) in (tuple, list):
        return type(tree)(map(_wide, tree))
    if type(tree) is dict:
        return {name: _wide(one) for name, one in tree.items()}
    return tree


def _summed(inputs: Any, seed: int) -> Callable[[nn.Module], Tensor]:  # see weigh
    """Return a loss: the first output of the model, weighted by fixed random numbers."""

    def run(model: nn.Module) -> Tensor:
        output = _called(model, inputs)
        while not isinstance(output, Tensor):
            output = next(iter(output.values() if isinstance(output, dict) else output))
        generator = torch.Generator().manual_seed(seed)
        weights = torch.randn(output.shape, generator=generator, dtype=torch.float64)
        total: Tensor = (output * weights.to(output.device)).sum()
        total /= max(output.numel(), 1) ** 0.5
        return total

    return run


def _called(model: nn.Module, inputs: Any) -> Any:  # whatever the model takes and returns
    if isinstance(inputs, dict):
        return model(**inputs)
    given: Any = inputs if isinstance(inputs, (tuple, list)) else (inputs,)  # as handed over
    return model(*given)
