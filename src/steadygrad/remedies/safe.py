"""Functions that stay finite at the edge of where they are defined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its customary name

from steadygrad.remedies._pass import first_loss
from steadygrad.remedies.instead import Instead
from steadygrad.remedies.remedy import Change, Remedy, Scene, Unfit, remedy

Function = Callable[..., Any]
TINY = 1e-12
SMALL = 1e-6

PAGE = """Compute {what} {how}, wherever it is called outside of torch's own functions.

**When it fails.** What lies at the edge is moved by {size}; where that is what the network is to
learn, the loss has another minimum. A mask behind the function helps neither: 0 * inf is NaN.

**Reference.** IEEE 754-2019, section 9.2.1, for where these functions are not defined; jax 2019
(issue 347) for why it is the argument that has to be changed, and not the result."""


def _log(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return torch.log(x.clamp_min(TINY), *args, **kwargs)


def _sqrt(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return torch.sqrt(x.clamp_min(0) + TINY, *args, **kwargs)


def _rsqrt(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return torch.rsqrt(x.clamp_min(0) + SMALL, *args, **kwargs)


def _acos(x: Tensor) -> Tensor:
    return torch.acos(x.clamp(-1 + SMALL, 1 - SMALL))


def _asin(x: Tensor) -> Tensor:
    return torch.asin(x.clamp(-1 + SMALL, 1 - SMALL))


def _atanh(x: Tensor) -> Tensor:
    return torch.atanh(x.clamp(-1 + SMALL, 1 - SMALL))


def _exp(x: Tensor) -> Tensor:
    return torch.exp(x.clamp_max(20))


def _norm(x: Tensor, p: Any = None, dim: Any = None, keepdim: bool = False, **more: Any) -> Any:
    if p not in (None, 2, 2.0, "fro") or more:
        return torch.norm(x, 2 if p is None else p, dim, keepdim, **more)
    squares = x.square().sum() if dim is None else x.square().sum(dim, keepdim=keepdim)
    return torch.sqrt(squares + TINY)


def _std(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return torch.std(x, *args, **{**kwargs, "unbiased": False}) + SMALL


def _div(x: Any, y: Any, **kwargs: Any) -> Any:
    if not isinstance(y, Tensor):
        return torch.div(x, y or SMALL, **kwargs)
    if not y.is_floating_point():
        return torch.div(x, y, **kwargs)
    away = torch.where(y < 0, y.clamp_max(-SMALL), y.clamp_min(SMALL))
    return torch.div(x, away, **kwargs)


def _softmax(x: Tensor, dim: int | None = None, *args: Any, **kwargs: Any) -> Tensor:
    masked = (x == -torch.inf).all(-1 if dim is None else dim, keepdim=True)
    return F.softmax(x.masked_fill(masked, 0.0), dim, *args, **kwargs).masked_fill(masked, 0.0)


def _functions(name: str) -> tuple[Function, ...]:
    """A function under all the names that it is called by."""
    found = [getattr(owner, name, None) for owner in (torch, Tensor, F, torch.linalg)]
    return tuple(one for one in found if one is not None)


KINDS: Sequence[tuple[str, Function, tuple[Function, ...], str, str]] = (
    ("log", _log, _functions("log"), "of at least 1e-12", "1e-12"),
    ("sqrt", _sqrt, _functions("sqrt"), "with 1e-12 inside", "1e-6"),
    ("rsqrt", _rsqrt, _functions("rsqrt"), "with 1e-6 inside", "1e-3"),
    ("acos", _acos, _functions("acos"), "at most 1e-6 off its ends", "1e-6"),
    ("asin", _asin, _functions("asin"), "at most 1e-6 off its ends", "1e-6"),
    ("atanh", _atanh, _functions("atanh"), "at most 1e-6 off its ends", "1e-6"),
    ("exp", _exp, _functions("exp"), "of at most 20", "all that is above 20"),
    ("norm", _norm, (torch.norm, Tensor.norm), "as a root with 1e-12 inside", "1e-6"),
    ("std", _std, _functions("std"), "over all samples, not one less, and 1e-6 more", "1e-6"),
    (
        "softmax",
        _softmax,
        (F.softmax, torch.softmax, Tensor.softmax),
        "as zeros where all is masked by -inf",
        "a row that sums to zero",
    ),
    (
        "div",
        _div,
        (*_functions("div"), *_functions("true_divide"), Tensor.__truediv__),
        "by no less than 1e-6",
        "a millionth of the quotient's inverse",
    ),
)
PATCHES = {
    "log": "x.clamp_min(1e-12).log()",
    "sqrt": "(x.clamp_min(0) + 1e-12).sqrt()",
    "rsqrt": "(x.clamp_min(0) + 1e-6).rsqrt()",
    "acos": "x.clamp(-1 + 1e-6, 1 - 1e-6).acos()",
    "asin": "x.clamp(-1 + 1e-6, 1 - 1e-6).asin()",
    "atanh": "x.clamp(-1 + 1e-6, 1 - 1e-6).atanh()",
    "exp": "x.clamp_max(20).exp()",
    "norm": "(x.square().sum(-1) + 1e-12).sqrt()",
    "std": "x.std(unbiased=False) + 1e-6",
    "softmax": "x.softmax(-1).where((x > -torch.inf).any(-1, keepdim=True), 0.0)",
    "div": "x / torch.where(y < 0, y.clamp_max(-1e-6), y.clamp_min(1e-6))",
}


def _safe(name: str, safe: Function, called: tuple[Function, ...], how: str, size: str) -> Remedy:
    def apply(scene: Scene) -> Change:
        if not _is_called(scene, called):
            raise Unfit(f"Nothing in the first batch's loss calls {name} by itself.")
        return Change(
            f"# where {name} is called: {PATCHES[name]}",
            functions=dict.fromkeys(called, safe),
            imitates=True,
        )

    what = {"div": "a quotient", "std": "a standard deviation"}.get(name, f"the {name}")
    apply.__doc__ = PAGE.format(what=what, how=how, size=size)
    return remedy(f"safe-{name}", "data", cures=("G002", "G003", "G004"), size=2)(apply)


def _is_called(scene: Scene, functions: Sequence[Function]) -> bool:
    met: list[Function] = []

    def noting(function: Function) -> Function:
        def noted(*args: Any, **kwargs: Any) -> Any:
            met.append(function)
            return function(*args, **kwargs)

        return noted

    with Instead({one: noting(one) for one in functions}):
        first_loss(scene)
    return bool(met)


SAFE: tuple[Remedy, ...] = tuple(_safe(*one) for one in KINDS)
