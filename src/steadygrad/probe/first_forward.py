"""Find the forward op that made a finite signal NaN or infinite, by running the pass once more.

Every op below autograd is seen by a TorchDispatchMode. A broken output takes over the origin of the
broken input it came from, so that the loss can be asked where its NaN was born. An infinity that
was asked for (a fill, a mask) is no culprit; the op that makes a NaN of it is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from steadygrad.probe.rerun import calling, rerun
from steadygrad.probe.subject import Subject
from steadygrad.probe.trace import users_line
from steadygrad.probe.tree import Tree, is_signal, tensors

FILLS = re.compile(
    r"^(masked_fill|where|full|fill|new_full|scalar_tensor|triu|tril|constant_pad|index_fill|"
    r"index_put|masked_scatter|scatter|lift_fresh)"
)
MASKED = re.compile(r"^(add|sub|mul|_to_copy)_?$")  # how an additive mask leaves half precision
UNWRITTEN = re.compile(r"^(new_)?empty")
OVERWRITES = re.compile(r"^(copy|fill|zero|normal|uniform|bernoulli|random|exponential)_$")
MIXING = re.compile(r"mm|mv|dot|conv|linear|attention|norm|softmax|embedding|index|gather|cumsum")
SOFTMAX = re.compile(r"softmax")
POLES = re.compile(r"^(log|div|reciprocal|rsqrt|acos|asin|atanh|pow|sqrt)")  # no overflow

How = Literal["born", "nan", "fill", "given"]


@dataclass(slots=True)
class Origin:
    """Where a broken value came from.

    `how` is "born" of finite inputs, "nan" of an infinity, "fill" as somebody asked, or "given"
    from outside. `op` is the function that was called and `inner` the op inside of it. `module` is
    None outside of all module calls: in the loss. `trained` says whether an input has a gradient.
    """

    how: How
    op: str
    inner: str
    module: str | None
    line: tuple[str, int]
    result: str
    index: tuple[int, ...] = ()
    values: dict[str, str] = field(default_factory=dict)
    dtype: str = ""
    all_masked: bool = False
    trained: bool = False
    parent: Origin | None = None

    def fact(self) -> dict[str, Any]:
        """The origin as a fact."""
        overflow = self.dtype in ("float16", "bfloat16") and self.result != "nan"
        return {
            "op": self.op,
            "inner": self.inner,
            "module": self.module,
            "line": list(self.line),
            "result": self.result,
            "index": list(self.index),
            "values": self.values,
            "dtype": self.dtype,
            "all_masked": self.all_masked,
            "trained": self.trained,
            "overflow": overflow and not POLES.match(self.inner),
        }


def first_forward(subject: Subject) -> dict[str, Any]:
    """Return the first op that broke what the pass returns; {} when nobody is to blame."""
    with ExitStack() as stack:
        names = stack.enter_context(Names())
        search = Search(stack.enter_context(calling(subject.model)), names)
        result = rerun(subject, search)
        return search.culprit(result)


class Names(TorchFunctionMode):
    """Keep the name of the function of torch that the user's code is calling."""

    current = ""

    def __torch_function__(
        self,
        func: Any,  # a function of torch
        types: Any,  # torch's own signature
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # whatever func returns
        """Note the name and run the function."""
        self.current = getattr(func, "__name__", str(func))
        return func(*args, **(kwargs or {}))


class Search(TorchDispatchMode):
    """Note the origin of each broken storage; `running` are the names of the running modules."""

    def __init__(self, running: list[str], names: Names) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch's
        self.running = running
        self.names = names
        self.history: list[Origin] = []
        self._origins: dict[
            int, tuple[Tensor, Origin]
        ] = {}  # by address; the tensor keeps it taken

    def __torch_dispatch__(
        self,
        func: Any,  # an OpOverload
        types: Any,  # torch's own signature
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # whatever func returns
        """Run the op and note what it broke."""
        name = func._schema.name.removeprefix("aten::")
        given = self._given(func, name, args)
        signals = [t for t in tensors(given) if _readable(t)]
        broken = [origin for origin in map(self._origin, signals) if origin is not None]
        out = func(*args, **(kwargs or {}))
        if UNWRITTEN.match(name):
            return out
        for tensor in tensors(out):
            if _is_broken(tensor):
                origin = self._made(name, given, tensor, broken)
                self._origins[tensor.untyped_storage().data_ptr()] = (tensor, origin)
        return out

    def culprit(self, result: Tree) -> dict[str, Any]:
        """Return the origin of the broken result, or of the first thing that broke on the way."""
        final = [one for one in map(self._origin, tensors(result)) if one is not None]
        nan_first = sorted(final or self.history, key=lambda one: one.result != "nan")
        guilty = [one for one in map(_root, nan_first) if one.how in ("born", "nan")]
        return guilty[0].fact() if guilty else {}

    def _given(self, func: Any, name: str, args: tuple[Any, ...]) -> dict[str, Any]:
        """Arguments by name; what the op may overwrite is copied, unless it is broken already."""
        names = ["input" if one.name == "self" else one.name for one in func._schema.arguments]
        named = dict(zip(names, args, strict=False))
        if OVERWRITES.match(name):
            named.pop("input", None)
        if not func._schema.is_mutable:
            return named
        return {k: self._copied(v) if isinstance(v, Tensor) else v for k, v in named.items()}

    def _copied(self, tensor: Tensor) -> Tensor:
        if not _readable(tensor) or tensor.untyped_storage().data_ptr() in self._origins:
            return tensor
        return tensor.detach().clone().requires_grad_(tensor.requires_grad)

    def _origin(self, tensor: Tensor) -> Origin | None:
        """Origin of a broken tensor; None for one that is finite."""
        if not _is_broken(tensor):
            return None
        known = self._origins.get(tensor.untyped_storage().data_ptr())
        if known is not None:
            return known[1]
        return Origin("given", "", "", None, ("", 0), _result(tensor)[0])

    def _made(
        self, name: str, given: Mapping[str, Any], out: Tensor, broken: Sequence[Origin]
    ) -> Origin:
        result, index = _result(out)
        nan = [one for one in broken if one.result == "nan"]
        if nan:
            return nan[0]
        if broken and result != "nan":
            return min(broken, key=lambda one: one.how != "born")
        how: How = "nan" if broken else "fill" if _asked_for(name, out) else "born"
        module = self.running[-1] if self.running else None
        origin = Origin(how, self.names.current, name, module, users_line(), result)
        origin.index, origin.dtype = index, str(out.dtype).removeprefix("torch.")
        origin.values = _values(name, given, out, index)
        origin.trained = any(t.requires_grad for t in tensors(given))
        origin.parent = min(broken, key=lambda one: one.how != "born") if broken else None
        origin.all_masked = how == "nan" and _all_masked(name, given.get("input"), index)
        self.history.append(origin)
        return origin


def _root(origin: Origin) -> Origin:
    """Follow an origin to the first op that is to blame."""
    while origin.parent is not None and origin.parent.how in ("born", "nan"):
        origin = origin.parent
    return origin


def _readable(tensor: Tensor) -> bool:
    return is_signal(tensor) and tensor.numel() > 0 and tensor.device.type != "meta"


def _is_broken(tensor: Tensor) -> bool:
    return _readable(tensor) and not bool(torch.isfinite(tensor).all())


def _asked_for(name: str, out: Tensor) -> bool:
    half = out.dtype in (torch.float16, torch.bfloat16)
    if half and MASKED.match(name):
        return bool((out[~torch.isfinite(out)] == -math.inf).all())
    return bool(FILLS.match(name))


def _result(tensor: Tensor) -> tuple[str, tuple[int, ...]]:
    """What the first broken element is, NaN before infinity, and where."""
    bad = torch.isnan(tensor)
    if not bool(bad.any()):
        bad = ~torch.isfinite(tensor)
    place = int(bad.flatten().to(torch.uint8).argmax())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(place), tensor.shape))
    return f"{float(tensor[index]):g}", index


def _values(
    name: str, given: Mapping[str, Any], out: Tensor, index: tuple[int, ...]
) -> dict[str, str]:
    """The inputs of an op where its output broke: a value where there is one, else the range."""
    elementwise = not MIXING.search(name)
    found = {}
    for label, value in given.items():
        if isinstance(value, Tensor) and value.numel():
            found[label] = _value(value, out, index, elementwise)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found[label] = f"{value:g}"
    return found


def _value(tensor: Tensor, out: Tensor, index: tuple[int, ...], elementwise: bool) -> str:
    if elementwise and broadcasts(tensor.shape, out.shape):
        return f"{float(tensor.expand(out.shape)[index]):g}"
    low, high = float(tensor.min()), float(tensor.max())
    count = f"{tensor.numel()} value" + ("s" if tensor.numel() > 1 else "")
    return f"{count}, {low:.4g} to {high:.4g}" if tensor.numel() > 1 else f"{count}, {low:.4g}"


def broadcasts(small: Sequence[int], large: Sequence[int]) -> bool:
    """Whether a tensor of the one shape expands to the other."""
    pairs = zip(small[::-1], large[::-1], strict=False)
    return len(small) <= len(large) and all(a in (1, b) for a, b in pairs)


def _all_masked(name: str, scores: object, index: tuple[int, ...]) -> bool:
    """Whether a softmax (or x - max x of one written by hand) got a row of nothing but -inf."""
    if not isinstance(scores, Tensor) or not (SOFTMAX.search(name) or name == "sub"):
        return False
    axes = range(scores.dim()) if scores.dim() == len(index) else ()
    return any(bool((_line(scores, index, axis) == -math.inf).all()) for axis in axes)


def _line(tensor: Tensor, index: tuple[int, ...], axis: int) -> Tensor:
    """Elements of a tensor along one axis through a point."""
    place: list[Any] = list(index)  # numbers and a slice
    place[axis] = slice(None)
    return tensor[tuple(place)]
