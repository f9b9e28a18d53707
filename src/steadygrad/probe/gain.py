"""Measure what an elementwise activation does to signal and gradient, from the module itself."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from steadygrad.core import theory

Activation = nn.Module | Callable[[Tensor], Tensor]
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def gain(activation: Activation, q: float = 1.0) -> theory.Gain:
    """Return the gains of any elementwise activation at pre-activations N(0, q).

    f and, by autograd, f' are evaluated in float64 on `theory.normal_grid()`: within 1e-4 of the
    exact value for activations that grow no faster than linearly. A module is evaluated on a copy,
    in evaluation mode, without its hooks; a callable is called as it is. The random state stays as
    found. Raise ValueError when the activation is not elementwise (softmax, GLU, a norm) or is
    not finite on the grid.
    """
    function = _elementwise(activation)
    z = theory.normal_grid()
    values, slopes = _evaluate(function, np.sqrt(q) * z)
    if not (np.isfinite(values).all() and np.isfinite(slopes).all()):
        raise ValueError(f"{_name(activation)} or its slope is not finite on all of N(0, {q:g})")
    return theory.gain_of(values, slopes, z, q)


def critical(activation: Activation) -> theory.CriticalPair:
    """Return the half-stable critical pair of an elementwise activation (GELU, SiLU and kin).

    See `theory.critical_pair`. Raise ValueError with the reason when it has none (ReLU, tanh) or
    when the activation is not elementwise.
    """
    function = _elementwise(activation)
    try:
        return theory.critical_pair(
            lambda x: _evaluate(function, x)[0], lambda x: _evaluate(function, x)[1]
        )
    except ValueError as error:
        raise ValueError(f"{_name(activation)}: {error}") from error


def critical_line(activation: Activation, sigma_b2: float) -> tuple[float, float]:
    """Return the critical sigma_w2 of an elementwise activation at this sigma_b2, and its q*.

    See `theory.critical_weight_variance`; tanh at 0.05 gives 1.761 and 0.570. Raise ValueError with
    the reason when there is none (ReLU) or when the activation is not elementwise.
    """
    function = _elementwise(activation)

    def f(x: theory.Array) -> theory.Array:
        return _evaluate(function, x)[0]

    try:
        weight = theory.critical_weight_variance(f, lambda x: _evaluate(function, x)[1], sigma_b2)
    except ValueError as error:
        raise ValueError(f"{_name(activation)}: {error}") from error
    return weight, theory.fixed_point(f, weight, sigma_b2)


def _evaluate(function: Callable[[Tensor], Tensor], x: theory.Array) -> tuple[theory.Array, ...]:
    """Return f(x) and f'(x), each shaped as x; a step function's slope is 0."""
    with _undisturbed():
        leaf = torch.tensor(x, dtype=torch.float64, device="cpu", requires_grad=True)
        values = function(leaf.clone())  # a clone, for an in-place activation
        slopes = torch.zeros_like(leaf)
        if values.requires_grad:
            (found,) = torch.autograd.grad(values.sum(), leaf, allow_unused=True)
            slopes = slopes if found is None else found
        return values.detach().double().numpy(), slopes.numpy()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Record gradients whatever the caller's mode, and give the random state back."""
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        yield


def _elementwise(activation: Activation) -> Callable[[Tensor], Tensor]:
    """Return the activation ready to call in float64, or raise ValueError.

    A module's `forward` is taken, which passes by the global hooks a watch may have installed.
    """
    function = _double(activation).forward if isinstance(activation, nn.Module) else activation
    problem = _not_elementwise(function)
    if problem:
        raise ValueError(f"{_name(activation)} is not an elementwise activation: {problem}")
    return function


def _double(module: nn.Module) -> nn.Module:
    """Return a float64 copy on the CPU, in evaluation mode, without hooks.

    The memo hands deepcopy an empty dict for each dict of hooks: copying a bound hook would copy
    the object that watches.
    """
    bare: dict[int, object] = {
        id(getattr(part, name)): OrderedDict() for part in module.modules() for name in _HOOKS
    }
    return copy.deepcopy(module, bare).to("cpu", torch.float64).eval()


def _not_elementwise(function: Callable[[Tensor], Tensor]) -> str | None:
    """Return what shows that a function mixes, reshapes or tells apart elements, or None.

    The fixed [2, 4, 6, 8] input has channels and positions, so that softmax over any axis shows.
    """
    x = torch.linspace(-3.0, 3.0, 384, dtype=torch.float64).reshape(2, 4, 6, 8)
    try:
        with _undisturbed():
            return _reshapes(function, x) or _mixes(function, x) or _tells_apart(function, x)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        return f"it cannot take any shape of input ({error})"


def _reshapes(function: Callable[[Tensor], Tensor], x: Tensor) -> str | None:
    y = function(x.clone())
    if not isinstance(y, Tensor):
        return f"it returns a {type(y).__name__}, not a tensor"
    same = y.shape == x.shape
    return None if same else f"it turns shape {list(x.shape)} into {list(y.shape)}"


def _mixes(function: Callable[[Tensor], Tensor], x: Tensor) -> str | None:
    """Move one inner element and see whether another output moves."""
    moved = x.clone()
    moved[1, 2, 3, 4] += 1.0
    alike = _alike(function(x.clone()), function(moved))
    alike[1, 2, 3, 4] = True
    return None if alike.all() else "changing one input element, or chance, changes other outputs"


def _tells_apart(function: Callable[[Tensor], Tensor], x: Tensor) -> str | None:
    alike = _alike(function(x.clone()).flatten(), function(x.flatten()))
    return None if alike.all() else "its output depends on where an element stands"


def _alike(a: Tensor, b: Tensor) -> Tensor:
    """Compare elements up to rounding: vectorized kernels treat a row's last few differently."""
    return torch.isclose(a, b, rtol=1e-9, atol=1e-12, equal_nan=True)


def _name(activation: Activation) -> str:
    if isinstance(activation, nn.Module):
        return type(activation).__name__
    return getattr(activation, "__name__", type(activation).__name__)
