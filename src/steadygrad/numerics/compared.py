"""Compare autograd's gradient with one found by numbers alone, and say which part is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from steadygrad.numerics.directions import Weighed, weigh
from steadygrad.numerics.plain import Array, Function
from steadygrad.numerics.slopes import gradient

Verdict = Literal["agrees", "differs", "unsure"]

TOLERANCE = 1e-5
"""Share of the derivative by which the two may differ: chosen by us. In float64 central differences
of healthy models agree to 1e-8 and better; a wrong backward is seldom off by less than 1e-3."""

UNSURE = 1e-2  # share of the derivative beyond which an error estimate tells nothing


@dataclass(frozen=True, slots=True)
class Comparison:
    """Hold what comparing two gradients has shown.

    verdict    `agrees`, `differs`, or `unsure`: the numbers are too rough to tell.
    wrong      names of the parameters, or indices, whose gradient is wrong.
    analytic   autograd's derivative along the direction compared, or of the worst element.
    numeric    the same by differences, and `error`, the estimate of its absolute error.
    passes     how often the model or function was run.
    """

    verdict: Verdict
    says: str
    wrong: tuple[str, ...]
    analytic: float
    numeric: float
    error: float
    passes: int


def check(
    subject: nn.Module | Function,
    x: Any = None,  # a tensor, a tuple or mapping of arguments, or a function's argument
    *,
    loss: Callable[[nn.Module], Tensor] | None = None,
    slope: Function | None = None,
    tolerance: float = TOLERANCE,
    seed: int = 0,
) -> Comparison:
    """Say whether a backward pass computes the gradient of its forward pass, and where it does not.

    A module is copied to float64 and moved along random directions of all its parameters at once:
    5 forward passes when all is well, 9 to name one wrong parameter among any number. A derivative
    is a sum over the parameters, so moving parameter k k times as far multiplies its error by k,
    which two passes weigh. Several wrong ones are told apart by halving, two passes a time. A
    function is compared element by element, a tensor in float64.

    A gradient that is wrong on purpose (a straight-through estimator, a path cut by `detach`) is
    told like any other.

    Args:
        subject: A module, with x as its inputs or `loss` as for `steadygrad.check`; or a scalar
            function of a tensor (compared with autograd) or of an array (compared with `slope`).
        x: The module's inputs, or the function's argument.
        loss: Takes the module, returns its loss; without one, a fixed random sum of the outputs.
        slope: The gradient of `subject` to be checked, where it is not autograd's.
        tolerance: Share of the derivative by which the two may differ.
        seed: Of the directions, and of the random numbers that the model draws.

    The model is left as it was, and the random state too.
    """
    if isinstance(subject, nn.Module):
        if loss is None and x is None:
            raise ValueError("expected x or a loss to run the model with, got neither")
        return _of_model(weigh(subject, x, loss, tolerance, seed))
    return _of_function(subject, x, slope, tolerance)


def _of_model(weighed: Weighed) -> Comparison:
    total = weighed.total
    size = max(abs(total.analytic), abs(total.numeric), weighed.scale)
    apart = abs(total.analytic - total.numeric)
    if not np.isfinite(total.numeric) or total.error > UNSURE * size:
        verdict: Verdict = "unsure"
        says = (
            f"the loss is too rough to tell: its derivative is {total.numeric:.4g} "
            f"+- {total.error:.1g} (a gradient near 0, jumps, random numbers, or low precision)"
        )
    elif weighed.wrong:
        verdict = "differs"
        says = (
            f"the gradient of {', '.join(weighed.wrong)} is wrong: along a random direction "
            f"autograd says {total.analytic:.8g}, differences say {total.numeric:.8g}"
        )
    else:
        verdict = "agrees"
        says = (
            f"autograd and differences agree to {apart / size if size else 0.0:.1g} along a random "
            f"direction of {weighed.count} parameters"
        )
    return Comparison(
        verdict, says, weighed.wrong, total.analytic, total.numeric, total.error, weighed.passes
    )


def _of_function(f: Function, x: object, slope: Function | None, tolerance: float) -> Comparison:
    if not isinstance(x, Tensor) and slope is None:
        raise ValueError(
            "expected slope, the gradient to be checked, for a function that is not torch's; give "
            "check(f, x, slope=df), or x as a tensor"
        )
    x = x.double() if isinstance(x, Tensor) and x.is_floating_point() else x
    found = gradient(f, x, "richardson")
    given = np.asarray(slope(x) if slope is not None else _by_autograd(f, x), dtype=np.float64)
    if given.shape != found.value.shape:
        raise ValueError(
            f"expected slope(x) to have the shape of x, {list(found.value.shape)}, got "
            f"{list(given.shape)}"
        )
    return _worst(given, found.value, found.error, found.calls, tolerance)


def _by_autograd(f: Function, x: object) -> Array:
    assert isinstance(x, Tensor)
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        value = f(leaf)
        if not value.requires_grad:
            return np.zeros(tuple(x.shape))
        (slope,) = torch.autograd.grad(value, leaf, allow_unused=True)
    return np.zeros(tuple(x.shape)) if slope is None else slope.detach().cpu().numpy()


def _worst(given: Array, found: Array, error: Array, calls: int, tolerance: float) -> Comparison:
    """Compare element by element; the worst speaks for all."""
    size = np.maximum(np.abs(found), np.abs(found).max(initial=0.0) * 1e-3)
    apart = np.abs(given - found)
    known = np.isfinite(error) & (error <= UNSURE * size + tolerance * size)
    wrong = known & (apart > tolerance * size + 3 * error)
    names = tuple(str(list(place)) for place in np.argwhere(wrong).tolist())
    shown = np.where(wrong, apart, -1.0) if wrong.any() else np.where(known, apart, np.inf)
    at = np.unravel_index(int(np.argmax(shown)), shown.shape)
    numbers = f"the slope given is {given[at]:.8g}, differences say {found[at]:.8g}"
    place = list(map(int, at))
    if wrong.any():
        verdict: Verdict = "differs"
        says = f"{wrong.sum()} of {wrong.size} elements are wrong; at {place} {numbers}"
    elif not known.all():
        verdict = "unsure"
        says = f"f is too rough at {place} to tell: {numbers} +- {error[at]:.1g}"
    else:
        verdict = "agrees"
        says = f"all {wrong.size} elements agree; at worst, at {place}, {numbers}"
    return Comparison(
        verdict, says, names, float(given[at]), float(found[at]), float(error[at]), calls
    )
