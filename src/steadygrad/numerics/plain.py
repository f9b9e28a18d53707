"""Turn a numpy or torch function and its point into a plain function from [n] to [m] numbers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Numbers = NDArray[Any]  # float32, float64, or, for the complex step, complex128
Array = NDArray[np.float64]
Function = Callable[[Any], Any]  # the user's own: numpy arrays or tensors, or plain floats


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
        self.calls = 1
        self._function = function
        self.device = x.device if isinstance(x, Tensor) else None
        point = _point(x)
        self.shape = point.shape
        self.x = point.reshape(-1)
        first = self.x.copy()
        result = _array(self._raw(first.reshape(self.shape) if self.shape else first[0]))
        if not np.array_equal(first, self.x):
            raise ValueError(
                "expected f to leave its argument as it is, got one that writes into it: copy it "
                "first, as in x = x.copy()"
            )
        self.shape_out = result.shape
        self.value = _real(result).reshape(-1)
        if not np.isfinite(self.value).all():
            raise ValueError(
                f"expected f to be finite at x, got {self.value[~np.isfinite(self.value)][0]}: "
                "differences need a value there"
            )

    def __call__(self, points: Numbers) -> Array:
        """Return f at flat real points [k, n] as [k, m]; the points are f's to keep."""
        return _real(self._rows(points))

    def imaginary(self, points: Numbers) -> Array:
        """Return the imaginary part of f at flat complex points [k, n] as [k, m]."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", np.exceptions.ComplexWarning)
                rows = self._rows(points)
        except (TypeError, ValueError, RuntimeError, np.exceptions.ComplexWarning) as error:
            raise ValueError(
                f"expected f to take complex numbers, got {type(error).__name__} ({error}): use "
                "method='richardson'"
            ) from error
        return np.imag(rows).astype(np.float64)

    def _rows(self, points: Numbers) -> Numbers:
        """Return what f gives at each point, [k, m]; one array is made of all, which is quick."""
        self.calls += len(points)
        results = [self._raw(point) for point in points.reshape(-1, *self.shape)]
        try:
            rows = _array(results if self.device is None else [_array(one) for one in results])
        except ValueError as error:  # of different shapes
            raise ValueError(self._elsewhere("several shapes")) from error
        if rows.shape[1:] != self.shape_out:
            raise ValueError(self._elsewhere(str(list(rows.shape[1:]))))
        return rows.reshape(len(points), -1)

    def _elsewhere(self, got: str) -> str:
        return f"expected f to return {list(self.shape_out)} numbers everywhere, got {got}"

    def _raw(self, x: Any) -> Any:  # an array or a number; whatever the user's function returns
        if self.device is None:
            return self._function(x)
        return self._function(torch.from_numpy(np.asarray(x)).to(self.device))


def quiet(x: object) -> AbstractContextManager[object]:
    """Leave autograd out of a torch function, and warnings of what is told anyway out of others."""
    return torch.no_grad() if isinstance(x, Tensor) else np.errstate(all="ignore")


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
    if x.dtype.type not in (np.float32, np.float64):
        raise TypeError(_wrong_kind(x.dtype.name))
    return x


def _wrong_kind(name: str) -> str:
    return (
        f"expected x in float32 or float64, got {name}: convert it, as in x.astype(float) or "
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
    return result.astype(np.float64)
