"""Estimate slopes from values: forward, central, complex step, and Richardson extrapolation.

Each method returns, for a plain function from [n] to [m], slopes and errors as [n, m]. A step is
a share of max(|x|, 1). With machine precision eps, an f of order one, and one f''' of order one,
the error h + eps / h of a forward difference is least at h = eps^(1/2), and h^2 + eps / h of a
central one at eps^(1/3) (Press 2007, "Numerical Recipes", sec. 5.7).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from steadygrad.numerics.plain import Array, Plain

FEW, MANY = 6, 11  # halved steps in Richardson's table, at first and in all
HALVED = 0.5 ** np.arange(MANY)
FIRST, FURTHER = (np.concatenate([-one, one]) for one in (HALVED[:FEW], HALVED[FEW:]))
ENOUGH = 1e-9  # share of a slope: the error beyond which shorter steps are tried
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
    values, at = _around(f, h, (1.0, 2.0))
    value, wide = (values - f.value) / at
    return Slopes(value, np.abs(wide - value) + 2 * _rounding(f, values, at[0]))


def central(f: Plain, step: float | None) -> Slopes:
    """Return (f(x + h) - f(x - h)) / 2h; the error is a third of what the step 2h changes."""
    h = steps(f, step or _eps(f) ** (1 / 3))
    values, at = _around(f, h, (-1.0, -2.0, 1.0, 2.0))
    low, high = values[:2], values[2:]
    value, wide = (high - low) / (at[2:] - at[:2])
    near, far = (high - 2 * f.value + low) / at[2:]
    noise = _rounding(f, values, at[2])
    return Slopes(value, np.abs(wide - value) / 3 + noise, (near, far), noise)


def complex_step(f: Plain, step: float | None) -> Slopes:
    """Return Im f(x + ih) / h: no subtraction, so exact to rounding, for an analytic f.

    abs, max, and comparisons are not analytic and would give a wrong number in silence; so the
    slopes are compared with a central difference along one direction. Raise ValueError when they
    disagree (Squire & Trapp 1998).
    """
    h = step or TINY
    value = f.imaginary(f.x + 1j * h * np.eye(f.x.size)) / h
    _expect_analytic(f, value)
    return Slopes(value, 4 * _eps64() * np.abs(value))


def richardson(f: Plain, step: float | None) -> Slopes:
    """Return central differences of halved steps, extrapolated to a step of 0.

    Of Richardson's table (Ridders 1982) each slope takes the entry that agrees best with its two
    parents; rounding counts as disagreement. Steps at which f is not finite are passed over. Six
    steps are taken at once, and five shorter ones where six leave an error above 1e-9 of a slope.
    """
    h = steps(f, step or COARSEST)
    values, at = _around(f, h, FIRST)
    found = _extrapolated(f, values, at)
    if (found.error <= ENOUGH * np.abs(found.value)).all():
        return found
    more, further = _around(f, h, FURTHER)
    halves = (slice(0, FEW), slice(0, MANY - FEW)), (slice(FEW, None), slice(MANY - FEW, None))
    values = np.concatenate([part for a, b in halves for part in (values[a], more[b])])
    at = np.concatenate([part for a, b in halves for part in (at[a], further[b])])
    return _extrapolated(f, values, at)


def _extrapolated(f: Plain, values: Array, at: Array) -> Slopes:
    """Take from the table of all levels what agrees best; low points [levels] first, then high."""
    levels = len(values) // 2
    low, high, distance = values[:levels], values[levels:], at[levels:]
    raw = ((high - low) / (distance - at[:levels])).reshape(levels, -1)
    table = _table(levels)
    broken = ~np.isfinite(raw)
    whole = not broken.any()
    entries = table.weights @ (raw if whole else np.where(broken, 0.0, raw))
    entry, left, above = entries.reshape(3, len(table.level), -1)
    noise = _rounding(f, values, distance).reshape(levels, -1)
    apart = np.maximum(np.abs(entry - left), np.abs(entry - above)) + noise[table.level]
    if not whole:
        apart[(table.uses @ broken.astype(np.float64)) > 0] = np.inf
    best = apart.argmin(axis=0), np.arange(raw.shape[1])
    error = apart[best].reshape(low.shape[1:])
    value = np.where(np.isfinite(error), entry[best].reshape(error.shape), np.nan)
    far, near = (high[-2:] - 2 * f.value + low[-2:]) / distance[-2:]
    return Slopes(value, error, (near, far), noise[-1].reshape(error.shape))


@dataclass(frozen=True, slots=True)
class Table:
    """Richardson's table as weights on the raw differences.

    weights   [3 * entries, levels]: every extrapolated entry, then its two parents.
    level     [entries]: the shortest step that an entry uses.
    uses      [entries, levels]: 1 for each raw difference that an entry uses.
    """

    weights: Array
    level: NDArray[np.intp]
    uses: Array


@lru_cache(maxsize=4)
def _table(levels: int) -> Table:
    """Return the table for steps halved so often: column j's error goes as h^(2j + 2)."""
    rows: list[list[Array]] = []
    entries: list[tuple[Array, Array, Array, int]] = []
    for level, raw in enumerate(np.eye(levels)):
        row = [raw]
        for column, above in enumerate(rows[-1] if rows else [], start=1):
            row.append(row[-1] + (row[-1] - above) / (4.0**column - 1.0))
            entries.append((row[-1], row[-2], above, level))
        rows.append(row)
    weights = np.concatenate([[entry[part] for entry in entries] for part in range(3)])
    uses = (weights[: len(entries)] != 0).astype(np.float64)
    return Table(weights, np.array([entry[3] for entry in entries]), uses)


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


def _around(f: Plain, h: Array, multiples: Sequence[float] | Array) -> tuple[Array, Array]:
    """Return f at x + multiple * h in each input, [k, n, m], and the true distances [k, n, 1].

    The distance is taken after rounding: what x + h really is in x's own dtype.
    """
    count = f.x.size
    moved = (f.x + np.asarray(multiples)[:, None] * h).astype(f.x.dtype)
    points = np.empty((len(moved), count, count), f.x.dtype)
    points[:] = f.x
    places = np.arange(count)
    points[:, places, places] = moved
    values = f(points.reshape(-1, count)).reshape(len(moved), count, -1)
    return values, (moved.astype(np.float64) - f.x)[:, :, None]


def _rounding(f: Plain, values: Array, distance: Array) -> Array:
    """Return eps |f| / h: what rounding f to its dtype does to a difference."""
    largest = np.maximum(np.abs(values).max(axis=0), np.abs(f.value))
    if not np.isfinite(largest).all():
        sizes = np.where(np.isfinite(values), np.abs(values), 0.0)
        largest = np.maximum(sizes.max(axis=0), np.abs(f.value))
    rounding: Array = _eps(f) * largest / np.abs(distance)
    return rounding


def _expect_analytic(f: Plain, value: Array) -> None:
    """Compare with a central difference along a fixed direction of mixed signs."""
    signs = np.where(np.arange(f.x.size) % 3 == 1, -1.0, 1.0)
    h = _eps(f) ** (1 / 3) * np.maximum(np.abs(f.x.astype(np.float64)), 1.0) * signs
    plus, minus = f(np.array([f.x + h, f.x - h]).astype(f.x.dtype))
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
