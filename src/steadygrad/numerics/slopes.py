"""Take the gradient or the Jacobian of any function by numbers alone."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from steadygrad.numerics.differences import METHODS, Slopes
from steadygrad.numerics.plain import Array, Estimate, Function, Plain, quiet

Booleans = NDArray[np.bool_]

Method = Literal["central", "forward", "complex", "richardson"]

SMOOTH = 1.5
"""Least ratio of the one-sided gaps at 2h and h of a smooth f, where it is 2; a kink's is 1 and a
jump's 1/2: chosen by us, half way."""

JUMP = 0.75  # the ratio below which it is a jump, half way between a kink's and a jump's

NOTABLE = 1e-3  # share of the slope that a gap must have to be told; chosen by us

MENTIONED = 3  # doubts told one by one


def gradient(
    f: Function, x: object, method: Method = "central", *, step: float | None = None
) -> Estimate:
    """Return the gradient of a scalar function at x, with an estimate of its error.

    Args:
        f: Takes what x is: a tensor, an array, or a float; returns one number.
        x: float32 or float64, any shape; the differences are taken in that precision.
        method: `central` (4 calls an input), `forward` (2), `complex` (1; f must be analytic and
            take complex numbers), `richardson` (12, or 22; the most accurate for any real f).
        step: A share of max(|x|, 1); chosen by dtype and method where it is left out.

    Raises:
        ValueError: when f returns more than one number, writes into x, is not finite at x, or is
            not analytic under `complex`; when the step is lost beside x.
        TypeError: for x that is not floating-point, and f that does not return numbers.
    """
    with quiet(x):
        plain = Plain(f, x)
        if plain.value.size != 1:
            raise ValueError(
                f"expected f to return one number, got shape {list(plain.shape_out)}: sum it, or "
                "use jacobian"
            )
        return _estimated(plain, method, step, plain.shape)


def jacobian(
    f: Function, x: object, method: Method = "central", *, step: float | None = None
) -> Estimate:
    """Return the derivative of every output by every input, [*f(x), *x]; see `gradient`."""
    with quiet(x):
        plain = Plain(f, x)
        return _estimated(plain, method, step, (*plain.shape_out, *plain.shape))


def _estimated(
    plain: Plain, method: Method, step: float | None, shape: tuple[int, ...]
) -> Estimate:
    if method not in METHODS:
        raise ValueError(f"expected one of {', '.join(get_args(Method))} as method, got {method}")
    if step is not None and not 0 < step < np.inf:
        raise ValueError(f"expected step to be a positive share of x, got {step}: leave it out")
    slopes = METHODS[method](plain, step)
    error, doubts = _judged(slopes)
    value = slopes.value.T.reshape(shape)
    return Estimate(value, error.T.reshape(shape), plain.calls, method, doubts)


def _judged(slopes: Slopes) -> tuple[Array, tuple[str, ...]]:
    """Return the errors [n, m] with kinks and jumps counted in, and a sentence for each input."""
    lost = ~np.isfinite(slopes.value)
    kink, jump = _broken(slopes) if slopes.gaps is not None else (lost & False, lost & False)
    if not (lost | kink | jump).any():
        return slopes.error, ()
    error = np.where(lost, np.inf, slopes.error)
    if slopes.gaps is not None:
        error = np.where(kink, np.maximum(error, np.abs(slopes.gaps[0]) / 2), error)
        error = np.where(jump, np.inf, error)
    told = [
        *_told(lost, "f is not finite around it, so that its slope is not known"),
        *_told(jump & ~lost, "f jumps there: it has no slope"),
        *_told(kink & ~lost, "f has a kink there: the slopes to the left and right differ"),
    ]
    return error, tuple(told)


def _broken(slopes: Slopes) -> tuple[Booleans, Booleans]:
    """Say where the slopes to the left and right go on to differ as the step shrinks.

    Their gap is h f'' where f is smooth, constant at a kink, and grows as 1 / h at a jump.
    """
    assert slopes.gaps is not None
    assert slopes.noise is not None
    near, far = np.abs(slopes.gaps[0]), np.abs(slopes.gaps[1])
    told = (near > 16 * slopes.noise) & (near > NOTABLE * np.abs(slopes.value))
    if not told.any():
        return told, told
    with np.errstate(invalid="ignore"):
        jump = told & (far < JUMP * near)
        kink = told & ~jump & (far < SMOOTH * near)
    return kink, jump


def _told(where: Booleans, says: str) -> list[str]:
    if not where.any():
        return []
    inputs = np.flatnonzero(where.any(axis=1)).tolist()
    more = len(inputs) - MENTIONED
    told = [f"input {place}: {says}" for place in inputs[:MENTIONED]]
    return [*told, f"{more} more inputs: {says}"] if more > 0 else told
