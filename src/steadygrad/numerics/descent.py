"""Descend along a gradient as in every textbook, and say why it ended."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer, RMSprop

from steadygrad.numerics.plain import Array, Function, Plain, quiet
from steadygrad.numerics.slopes import gradient

Reason = Literal["converged", "diverged", "budget"]
Rule = Literal["sgd", "momentum", "rmsprop", "adam"]
Make = Callable[[Iterable[Tensor]], Optimizer]

RULES: dict[str, Callable[..., Optimizer]] = {
    "sgd": SGD,
    "momentum": partial(SGD, momentum=0.9),
    "rmsprop": RMSprop,
    "adam": Adam,
}

AWAY = 1e6
"""Times the first gradient's norm at which a path is called diverged: chosen by us. A stable path
may grow at first; a diverging one passes any number soon."""


@dataclass(frozen=True, slots=True)
class Path:
    """Hold where a descent went, and why it ended.

    points   [steps + 1, *x]; all are finite.
    values   f at the points, [steps + 1].
    norms    the gradient's norm at the points, [steps + 1]; inf where it was not finite.
    reason   `converged` (norm at most tol), `diverged`, or `budget` (max_steps).
    says     the reason as a sentence, with its numbers.
    """

    points: Array
    values: Array
    norms: Array
    reason: Reason
    says: str

    @property
    def oscillates(self) -> bool:
        """Whether most of the last ten steps turned back on the one before."""
        moves = np.diff(self.points.reshape(len(self.points), -1), axis=0)[-11:]
        back = (moves[1:] * moves[:-1]).sum(axis=1) < 0
        return bool(len(back) and back.mean() > 0.5)


def descend(  # noqa: PLR0913 - the textbook's five, and two that replace its parts
    f: Function,
    x0: object,
    lr: float,
    tol: float = 1e-8,
    max_steps: int = 1000,
    *,
    rule: Rule | Make = "sgd",
    slope: Function | None = None,
) -> Path:
    """Start at x0, and step against the gradient until it is no longer than tol.

    A value or gradient that is not finite, or a gradient 1e6 times the first, ends the path as
    diverged, with all finite points before it.

    Args:
        f: A scalar function of a tensor, an array, or a float, as x0 is.
        x0: Where to start; it is not changed.
        lr: The learning rate of `torch.optim`'s rule; with `sgd`, a step is lr times the gradient.
        tol: The norm of the gradient at which the path has converged.
        max_steps: The budget.
        rule: `sgd`, `momentum` (0.9), `rmsprop`, `adam`, or a function that makes an optimizer of
            parameters, which then has an lr of its own.
        slope: The gradient of f; otherwise autograd's for tensors, central differences for others.

    Raises:
        ValueError: for an lr or a budget that is not positive, an unknown rule, and an f that
            returns more than one number or is not finite at x0.
    """
    _expect(lr, max_steps, rule)
    with quiet(x0):
        plain = Plain(f, x0)
    if plain.value.size != 1:
        raise ValueError(
            f"expected f to return one number, got shape {list(plain.shape_out)}: sum it"
        )
    point = torch.from_numpy(plain.x.copy()).reshape(plain.shape).requires_grad_()
    make = partial(RULES[rule], lr=lr) if isinstance(rule, str) else rule
    walk = _Walk(plain, point, make([point]), _slope(f, x0, slope))
    reason, says = walk.run(tol, max_steps)
    return walk.path(reason, f"{says}; {_advice(reason, lr)}" if reason != "converged" else says)


@dataclass(slots=True)
class _Walk:
    """A point on its way, and where it has been."""

    f: Plain
    point: Tensor
    optimizer: Optimizer
    slope: Callable[[Tensor], Tensor]
    points: list[Array] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)

    def run(self, tol: float, max_steps: int) -> tuple[Reason, str]:
        """Walk until something ends it; say what did."""
        for step in range(max_steps + 1):
            if trouble := self._arrive():
                return "diverged", f"{trouble} at step {step}"
            norm = self.norms[-1]
            if norm <= tol:
                return "converged", f"the gradient is {norm:.3g} at step {step}"
            if norm > AWAY * self.norms[0]:
                grown = norm / self.norms[0]
                return "diverged", f"the gradient is {grown:.3g} times the first at step {step}"
            if step < max_steps:
                self.optimizer.step()
        return "budget", f"the gradient is still {norm:.3g} at step {max_steps}"

    def _arrive(self) -> str:
        """Take down the point, its value, and its gradient; say what of it is not finite."""
        point = self.point.detach().numpy().copy()
        value = math.nan
        if np.isfinite(point).all():
            with quiet(None if self.f.device is None else self.point):
                value = float(self.f(point.reshape(1, -1).copy())[0, 0])
        if not math.isfinite(value):
            return f"f is {value}" if np.isfinite(point).all() else "the point is not finite"
        self.point.grad = self.slope(self.point.detach())
        norm = float(self.point.grad.norm())
        self.points.append(point)
        self.values.append(value)
        self.norms.append(norm if math.isfinite(norm) else math.inf)
        return "" if math.isfinite(norm) else "the gradient is not finite"

    def path(self, reason: Reason, says: str) -> Path:
        """Return what was taken down."""
        return Path(
            np.array(self.points), np.array(self.values), np.array(self.norms), reason, says
        )


def _slope(f: Function, x0: object, given: Function | None) -> Callable[[Tensor], Tensor]:
    """Return the gradient of f as a function of the walk's tensor."""
    if isinstance(x0, Tensor):
        return partial(_by_autograd if given is None else _called, given or f, x0)
    if given is None:
        return lambda point: torch.from_numpy(gradient(f, _numbers(point)).value).to(point)
    return lambda point: torch.as_tensor(given(_numbers(point))).to(point).reshape(point.shape)


def _by_autograd(f: Function, x0: Tensor, point: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = point.to(x0.device).requires_grad_()
        (slope,) = torch.autograd.grad(f(leaf), leaf)
    return slope.to(point)


def _called(given: Function, x0: Tensor, point: Tensor) -> Tensor:
    slope: Tensor = given(point.to(x0.device))
    return slope.to(point)


def _numbers(point: Tensor) -> object:
    return point.numpy().copy() if point.dim() else point.numpy()[()]


def _advice(reason: Reason, lr: float) -> str:
    if reason == "diverged":
        return f"lr = {lr:g} is too large, or f has no lower bound on the way"
    return "give more steps or another lr"


def _expect(lr: float, max_steps: int, rule: Rule | Make) -> None:
    if not 0 < lr < math.inf:
        raise ValueError(f"expected lr to be positive and finite, got {lr}: try 0.01")
    if max_steps < 1:
        raise ValueError(f"expected max_steps to be at least 1, got {max_steps}")
    if isinstance(rule, str) and rule not in RULES:
        raise ValueError(
            f"expected rule to be one of {', '.join(RULES)}, or a function from parameters to an "
            f"optimizer, got {rule}"
        )
