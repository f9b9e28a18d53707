"""Find the forward op that made a finite signal NaN or infinite, by running the pass once more.

Every op below autograd is seen by a TorchDispatchMode. A broken output takes over the origin of the
broken input it came from, so that the loss can be asked where its NaN was born. An infinity that
was asked for (a fill, a mask) is no culprit; the op that makes a NaN of it is. Where nobody is, the
op is named that was given a broken constant, or that let an infinity asked for into a sum.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from steadygrad.probe.births import birth_of
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
POLES = {"div": "other", "reciprocal": "input", "rsqrt": "input", "pow": "input"}  # at zero of it
ENDLESS = re.compile(r"^(log|acos|asin|atanh|sqrt)")  # infinite at a pole, never by overflow
CARRIES = re.compile(
    r"^(view|_unsafe_view|_reshape_alias|detach|alias|expand|unsqueeze|squeeze|transpose|t$|permute|"
    r"select|slice|clone|lift_fresh|_to_copy|cat|stack|index|gather|split|unbind)"
)

How = Literal["born", "nan", "fill", "given"]


@dataclass(slots=True)
class Origin:
    """Where a broken value came from.

    `how` is "born" of finite inputs, "nan" of an infinity, "fill" as somebody asked, or "given"
    from outside. `op` is the function that was called and `inner` the op inside of it. `module` is
    None outside of all module calls: in the loss. `trained` says whether an input has a gradient,
    `bare` which of them has none. `born` is the birth of a constant that came broken.
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
    bare: tuple[str, ...] = ()
    born: dict[str, Any] = field(default_factory=dict)
    parent: Origin | None = None

    def fact(self) -> dict[str, Any]:
        """The origin as a fact."""
        half = self.dtype in ("float16", "bfloat16") and self.result != "nan"
        return {
            "how": self.how,
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
            "bare": list(self.bare),
            "overflow": half and not self._at_pole,
            "born": self.born,
            "asked": [self.parent.op, *self.parent.line] if self.parent is not None else [],
        }

    @property
    def _at_pole(self) -> bool:
        """Whether the op is infinite here in any precision."""
        zero = next((arg for name, arg in POLES.items() if self.inner.startswith(name)), "")
        at_zero = self.values.get(zero, "") in ("0", "-0")
        return at_zero or bool(ENDLESS.match(self.inner))


def first_forward(subject: Subject) -> dict[str, Any]:
    """Return the first op that broke what the pass returns; {} when none can be named.

    `how` is "given" or "fill" where no op is to blame but what was handed to it.
    """
    with ExitStack() as stack:
        names = stack.enter_context(Names())
        search = Search(stack.enter_context(calling(subject.model)), names)
        result = rerun(subject, search)
        return search.culprit(result)


def until_exception(model: nn.Module, run: Callable[[], object]) -> dict[str, Any]:
    """Return the first op that broke anything before a pass raised; {} when there is none."""
    with ExitStack() as stack:
        names = stack.enter_context(Names())
        search = stack.enter_context(Search(stack.enter_context(calling(model)), names))
        with suppress(Exception):  # it has been shown to the user
            run()
        found: dict[str, Any] = search.culprit(())
    return found


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
        if not CARRIES.match(name):
            broken = [self._entered(name, one) for one in broken]
        out = func(*args, **(kwargs or {}))
        if UNWRITTEN.match(name):
            return out
        for tensor in tensors(out):
            if is_broken(tensor):
                origin = self._made(name, given, tensor, broken)
                self._origins[tensor.untyped_storage().data_ptr()] = (tensor, origin)
        return out

    def culprit(self, result: Tree) -> dict[str, Any]:
        """Return the origin of the broken result, or of the first thing that broke on the way."""
        final = [one for one in map(self._origin, tensors(result)) if one is not None]
        nan_first = sorted(final or self.history, key=lambda one: one.result != "nan")
        roots = [_root(one) for one in nan_first]
        guilty = [one for one in roots if one.how in ("born", "nan")]
        let_in = [one for one in roots if one.op and (one.how == "given" or one.parent is not None)]
        return next((one.fact() for one in (*guilty, *let_in)), {})

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
        if not is_broken(tensor):
            return None
        known = self._origins.get(tensor.untyped_storage().data_ptr())
        if known is not None:
            return known[1]
        result, index = broken_at(tensor)
        birth = birth_of(tensor)
        origin = Origin("given", "", "", None, ("", 0), result, index)
        origin.born = {} if birth is None else birth.fact()
        self._origins[tensor.untyped_storage().data_ptr()] = (tensor, origin)
        return origin

    def _entered(self, name: str, origin: Origin) -> Origin:
        """Say of a constant that came broken which op it was given to first."""
        if origin.how == "given" and not origin.op and origin.result != "-inf":
            self._place(origin, name)
        return origin

    def _place(self, origin: Origin, name: str) -> None:
        """Note where an origin is: the function that runs now, its module and line."""
        origin.op, origin.inner, origin.line = self.names.current, name, users_line()
        origin.module = self.running[-1] if self.running else None

    def _made(
        self, name: str, given: Mapping[str, Any], out: Tensor, broken: Sequence[Origin]
    ) -> Origin:
        result, index = broken_at(out)
        nan = [one for one in broken if one.result == "nan"]
        if nan:
            return nan[0]
        first = min(broken, key=lambda one: one.how != "born") if broken else None
        if first is not None and result != "nan" and not _adds_up(first, given, out):
            return first
        how: How = "fill" if _asked_for(name, out) else "born"
        if first is not None:
            how = "nan" if result == "nan" else first.how
        origin = Origin(how, "", "", None, ("", 0), result, index)
        self._place(origin, name)
        origin.dtype = str(out.dtype).removeprefix("torch.")
        origin.values = values_at(name, given, out, index)
        if name.startswith("nll_loss"):
            origin.index = _broken_label(given) or index
        origin.trained = any(t.requires_grad for t in tensors(given))
        signals = {k: t for k, t in given.items() if isinstance(t, Tensor) and _readable(t)}
        origin.bare = tuple(k for k, t in signals.items() if not t.requires_grad)
        origin.parent = first
        origin.all_masked = how == "nan" and _all_masked(name, given.get("input"), index)
        self.history.append(origin)
        return origin


def _adds_up(first: Origin, given: Mapping[str, Any], out: Tensor) -> bool:
    """Whether an op lets an infinity that was asked for into the one number that it returns."""
    asked = (first.how == "fill" and first.parent is None) or (
        first.how == "given" and not first.op
    )
    largest = max((t.numel() for t in tensors(given) if _readable(t)), default=0)
    return asked and out.numel() == 1 < largest


def _root(origin: Origin) -> Origin:
    """Follow an origin to the first op that is to blame."""
    while (parent := origin.parent) is not None:
        if parent.how not in ("born", "nan") and not (parent.how == "given" and parent.op):
            break
        origin = parent
    return origin


def _readable(tensor: Tensor) -> bool:
    return is_signal(tensor) and tensor.numel() > 0 and tensor.device.type != "meta"


def is_broken(tensor: Tensor) -> bool:
    """Whether a tensor can be read and holds NaN or infinity."""
    return _readable(tensor) and not bool(torch.isfinite(tensor).all())


def _asked_for(name: str, out: Tensor) -> bool:
    half = out.dtype in (torch.float16, torch.bfloat16)
    if half and MASKED.match(name):
        return bool((out[~torch.isfinite(out)] == -math.inf).all())
    return bool(FILLS.match(name))


def _broken_label(given: Mapping[str, Any]) -> tuple[int, ...]:
    """Sample and class of the first label whose own log-probability is broken; () for none."""
    scores, labels = given.get("input"), given.get("target")
    if not isinstance(scores, Tensor) or not isinstance(labels, Tensor) or scores.dim() != 2:
        return ()
    own = scores.gather(1, labels.clamp(0, scores.shape[1] - 1)[:, None])[:, 0]
    rows = (~torch.isfinite(own) & (labels >= 0)).nonzero()
    return (int(rows[0]), int(labels[rows[0]])) if len(rows) else ()


def broken_at(tensor: Tensor) -> tuple[str, tuple[int, ...]]:
    """Say what the first broken element is, NaN before infinity, and where."""
    bad = torch.isnan(tensor)
    if not bool(bad.any()):
        bad = ~torch.isfinite(tensor)
    place = int(bad.flatten().to(torch.uint8).argmax())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(place), tensor.shape))
    return f"{float(tensor[index]):g}", index


def values_at(
    name: str, given: Mapping[str, Any], out: Tensor, index: tuple[int, ...]
) -> dict[str, str]:
    """Show the inputs of an op where its output broke: a value where there is one, else a range."""
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
