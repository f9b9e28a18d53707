"""Estimate slopes from values: forward, central, complex step, and Richardson extrapolation.

Each method returns, for a plain function from [n] to [m], slopes and errors as [n, m]. A step is
a share of max(|x|, 1). With machine precision eps, an f of order one, and one f''' of order one,
the error h + eps / h of a forward difference is least at h = eps^(1/2), and h^2 + eps / h of a
central one at eps^(1/3) (Press 2007, "Numerical Recipes", sec. 5.7).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from steadygrad.numerics.plain import Array, Numbers, Plain

LEVELS = 12  # at most, of halved steps in Richardson's table
COARSEST = 2.0**-3  # its first step; chosen by us: 2^-2 leaves more domains, 2^-5 loses a digit
TINY = 1e-20  # the complex step: its error is of the order of its square


@dataclass(frozen=True, slots=True)
class Slopes:
    """Slopes, errors, and one-sided disagreement at two steps, h and 2h, all [n, m]."""

    value: Array
    error: Array
    gaps: tuple[Array, Array] | None = None
    noise: Array | None = None


def forward(f: Plain, step: float | None) -> Slopes:
    """Return (f(x + h) - f(x)) / h; the error is what a step twice as long changes."""
    h = steps(f, step or _eps(f) ** 0.5)
    (one, two), (near, far) = _around(f, h, (1.0, 2.0))
    value, wide = (one - f.value) / near, (two - f.value) / far
    return Slopes(value, np.abs(wide - value) + 2 * _rounding(f, near, one, two))


def central(f: Plain, step: float | None) -> Slopes:
    """Return (f(x + h) - f(x - h)) / 2h; the error is a third of what the step 2h changes."""
    h = steps(f, step or _eps(f) ** (1 / 3))
    values, at = _around(f, h, (-2.0, -1.0, 1.0, 2.0))
    value = (values[2] - values[1]) / (at[2] - at[1])
    wide = (values[3] - values[0]) / (at[3] - at[0])
    noise = _rounding(f, at[2], *values)
    gaps = _gap(f, values[1], values[2], at[2]), _gap(f, values[0], values[3], at[3])
    return Slopes(value, np.abs(wide - value) / 3 + noise, gaps, noise)


def complex_step(f: Plain, step: float | None) -> Slopes:
    """Return Im f(x + ih) / h: no subtraction, so exact to rounding, for an analytic f.

    abs, max, and comparisons are not analytic and would give a wrong number in silence; so the
    slopes are compared with a central difference along one direction. Raise ValueError when they
    disagree (Squire & Trapp 1998).
    """
    h = step or TINY
    rows = []
    for place in range(f.x.size):
        moved = f.x.astype(np.complex128)
        moved[place] += 1j * h
        rows.append(f.imaginary(moved) / h)
    value = np.array(rows).reshape(f.x.size, f.value.size)
    _expect_analytic(f, value)
    return Slopes(value, 4 * _eps64() * np.abs(value))


def richardson(f: Plain, step: float | None) -> Slopes:
    """Return central differences of halved steps, extrapolated to a step of 0.

    Of Richardson's table (Ridders 1982) each slope takes the entry that agrees best with its two
    parents; rounding counts as disagreement. Steps at which f is not finite are passed over.
    Halving ends when no slope has become better for two levels.
    """
    rows: list[list[Array]] = []
    shape = (f.x.size, f.value.size)
    best = Slopes(np.full(shape, np.nan), np.full(shape, np.inf))
    gaps: list[Array] = []
    stale = 0
    for level in range(LEVELS):
        h = steps(f, (step or COARSEST) * 0.5**level)
        (low, high), (left, right) = _around(f, h, (-1.0, 1.0))
        noise = _rounding(f, right, low, high)
        gaps.append(_gap(f, low, high, right))
        rows.append(_extrapolated((high - low) / (right - left), rows[-1] if rows else []))
        better = _better(best, rows, noise)
        begun = bool(np.isfinite(better.error).any())
        stale = 0 if (better.error < 0.5 * best.error).any() else stale + begun
        best = better
        if stale == 2 or (best.error <= 2 * _eps(f) * np.abs(best.value)).all():
            break
    return Slopes(best.value, best.error, (gaps[-1], gaps[-2]), noise)


METHODS: dict[str, Callable[[Plain, float | None], Slopes]] = {
    "central": central,
    "forward": forward,
    "complex": complex_step,
    "richardson": richardson,
}


def steps(f: Plain, share: float) -> Array:
    """Return a step for each input [n]; raise when one is lost beside its x."""
    h = share * np.maximum(np.abs(f.x.astype(np.float64)), 1.0)
    lost = (f.x + h.astype(f.x.dtype)) == f.x
    if lost.any():
        place = int(np.argmax(lost))
        raise ValueError(
            f"expected a step that changes x in {f.x.dtype}, got {h[place]:.3g} at "
            f"x = {f.x[place]:.6g}, where the next number is {np.spacing(abs(f.x[place])):.3g} "
            "away: leave step out"
        )
    return h


def _around(f: Plain, h: Array, multiples: tuple[float, ...]) -> tuple[list[Array], list[Array]]:
    """Return f at x + multiple * h in each input, [n, m] each, and the true distances [n, 1].

    The distance is taken after rounding: what x + h really is in x's own dtype.
    """
    values, distances = [], []
    for multiple in multiples:
        moved = (f.x + multiple * h).astype(f.x.dtype)
        rows = [f(_replaced(f.x, place, moved[place])) for place in range(f.x.size)]
        values.append(np.array(rows).reshape(f.x.size, f.value.size))
        distances.append((moved.astype(np.float64) - f.x)[:, None])
    return values, distances


def _replaced(x: Numbers, place: int, value: float) -> Numbers:
    moved = x.copy()
    moved[place] = value
    return moved


def _extrapolated(first: Array, above: list[Array]) -> list[Array]:
    """Return the next row of Richardson's table: the error of column j goes as h^(2j + 2)."""
    row = [first]
    for column, parent in enumerate(above, start=1):
        row.append(row[-1] + (row[-1] - parent) / (4.0**column - 1.0))
    return row


def _better(best: Slopes, rows: list[list[Array]], noise: Array) -> Slopes:
    """Take from the newest row what agrees better with its parents than the best so far."""
    value, error = best.value.copy(), best.error.copy()
    for column in range(1, len(rows[-1])):
        entry = rows[-1][column]
        apart = np.maximum(
            np.abs(entry - rows[-1][column - 1]), np.abs(entry - rows[-2][column - 1])
        )
        with np.errstate(invalid="ignore"):
            chosen = apart + noise < error
        value[chosen], error[chosen] = entry[chosen], (apart + noise)[chosen]
    return Slopes(value, error)


def _gap(f: Plain, low: Array, high: Array, distance: Array) -> Array:
    """Return the slope to the right less the slope to the left: h f'' where f is smooth."""
    gap: Array = (high - 2 * f.value + low) / distance
    return gap


def _rounding(f: Plain, distance: Array, *values: Array) -> Array:
    """Return eps |f| / h: what rounding f to its dtype does to a difference."""
    largest = np.max(np.abs(np.array(values)), axis=0)
    rounding: Array = _eps(f) * np.maximum(largest, np.abs(f.value)) / np.abs(distance)
    return rounding


def _expect_analytic(f: Plain, value: Array) -> None:
    """Compare with a central difference along a fixed direction of mixed signs."""
    signs = np.where(np.arange(f.x.size) % 3 == 1, -1.0, 1.0)
    h = _eps(f) ** (1 / 3) * np.maximum(np.abs(f.x.astype(np.float64)), 1.0) * signs
    plus, minus = (f((f.x + way * h).astype(f.x.dtype)) for way in (1.0, -1.0))
    along = np.abs(plus - minus - 2 * h @ value)
    size = np.abs(2 * h) @ np.abs(value) + np.abs(plus - minus)
    rounding = 100 * _eps(f) * (np.abs(plus) + np.abs(minus))
    if (along > 1e-2 * size + rounding).any():
        raise ValueError(
            "expected an f that is analytic, got one whose complex step disagrees with its central "
            "difference (abs, max, and comparisons drop the imaginary part): use "
            "method='richardson'"
        )


def _eps(f: Plain) -> float:
    return float(np.finfo(f.x.dtype).eps)


def _eps64() -> float:
    return float(np.finfo(np.float64).eps)
