"""What a policy's settings must be, with one sentence for what they are not."""

from __future__ import annotations

import math
import numbers


def positive(name: str, value: float) -> None:
    """Refuse a number that is not finite and above zero."""
    _number(name, value)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(
            f"{name} must be a finite number above 0, got {value}: "
            "leave the policy out to let gradients through"
        )


def within(name: str, value: float, low: float, high: float) -> None:
    """Refuse a number outside [low, high]."""
    _number(name, value)
    if not low <= value <= high:
        raise ValueError(f"{name} must be in [{low:g}, {high:g}], got {value}")


def at_least(name: str, value: float, low: float) -> None:
    """Refuse a number below a limit, or NaN."""
    _number(name, value)
    if not value >= low:
        raise ValueError(f"{name} must be at least {low:g}, got {value}")


def whole(name: str, value: int, low: int) -> None:
    """Refuse what is no whole number, and one below a limit."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    at_least(name, value, low)


def _number(name: str, value: object) -> None:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {value!r}")
