"""Turn a numpy or torch function and its point into a plain function from [n] to [m] numbers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Numbers = NDArray[Any]  # float32, float64, or, for the complex step, complex128
Array = NDArray[np.float64]
Function = Callable[[Any], Any]  # the user's own: numpy arrays or tensors, or plain floats

DTYPES = ("float32", "float64")


@dataclass(frozen=True, slots=True)
class Estimate:
    """Hold derivatives found by differences, and how far to trust them.

    value    the derivatives, float64: [x] for a gradient, [f(x), x] for a Jacobian.
    error    an estimate of the absolute error of each, of the same shape; inf at a jump.
    calls    how often f was called.
    doubts   a sentence for each input at which f jumps, has a kink, or is not finite.
    """

    value: Array
    error: Array
    calls: int
    method: str
    doubts: tuple[str, ...] = ()


class Plain:
    """Call a function of one array as a function of a flat [n] array, and count the calls."""

    def __init__(self, function: Function, x: object) -> None:
        self.calls = 0
        self._function = function
        self._device = x.device if isinstance(x, Tensor) else None
        point = _point(x)
        self.shape = point.shape
        self.x = point.reshape(-1)
        first = self.x.copy()
        result = self._raw(first)
        if not np.array_equal(first, self.x):
            raise ValueError(
                "expected f to leave its argument as it is, got one that writes into it: copy it "
                "first, as in x = x.copy()"
            )
        self.shape_out = result.shape
        self.value = _real(result)
        if not np.isfinite(self.value).all():
            raise ValueError(
                f"expected f to be finite at x, got {self.value[~np.isfinite(self.value)][0]}: "
                "differences need a value there"
            )

    def __call__(self, x: Numbers) -> Array:
        """Return f at flat real x, [m]; what f does to its argument is lost."""
        result = _real(self._raw(x.copy()))
        if result.shape != self.value.shape:
            raise ValueError(
                f"expected f to return {self.value.size} numbers everywhere, got {result.size}"
            )
        return result

    def imaginary(self, x: Numbers) -> Array:
        """Return the imaginary part of f at flat complex x, [m]."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", np.exceptions.ComplexWarning)
                result = self._raw(x.copy())
        except (TypeError, ValueError, RuntimeError, np.exceptions.ComplexWarning) as error:
            raise ValueError(
                f"expected f to take complex numbers, got {type(error).__name__} ({error}): use "
                "method='richardson'"
            ) from error
        return np.imag(result).reshape(-1).astype(np.float64)

    def _raw(self, x: Numbers) -> Numbers:
        self.calls += 1
        shaped = x.reshape(self.shape)
        with np.errstate(all="ignore"), torch.no_grad():
            if self._device is None:
                return _array(self._function(shaped if self.shape else shaped[()]))
            result = self._function(torch.from_numpy(shaped).to(self._device))
            return _array(result)


def _point(x: object) -> Numbers:
    """Return x as an array of its own; Python numbers and lists of them are float64."""
    if isinstance(x, Tensor):
        x = x.detach().cpu()
        if x.dtype in (torch.float16, torch.bfloat16):
            raise TypeError(_wrong_kind(str(x.dtype).removeprefix("torch.")))
        return _floating(x.numpy().copy())
    if isinstance(x, np.ndarray | np.generic):
        return _floating(np.array(x))
    return np.array(x, dtype=np.float64)


def _floating(x: Numbers) -> Numbers:
    if x.dtype.name not in DTYPES:
        raise TypeError(_wrong_kind(x.dtype.name))
    return x


def _wrong_kind(name: str) -> str:
    return (
        f"expected x in {' or '.join(DTYPES)}, got {name}: convert it, as in x.astype(float) or "
        "x.double()"
    )


def _array(result: object) -> Numbers:
    if isinstance(result, Tensor):
        result = result.detach().cpu().resolve_conj().numpy()
    found = np.asarray(result)
    if found.dtype.kind not in "fciub":
        raise TypeError(f"expected f to return numbers, got {type(result).__name__}")
    return found


def _real(result: Numbers) -> Array:
    if result.dtype.kind == "c":
        raise TypeError("expected f to return real numbers, got complex ones: take real and imag")
    return result.reshape(-1).astype(np.float64)
