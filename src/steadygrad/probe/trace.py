"""A Trace listens to one forward pass: what every op put out, and which module call it ran in.

Ops are seen by a TorchFunctionMode and keyed by the autograd node of their output; module calls by
forward hooks. A node that no op claimed (inside a composite function) belongs to the module call
that was running when autograd numbered it: `torch._C._autograd._get_sequence_nr` is private, so its
absence is survived (such nodes then belong to no call).
"""

from __future__ import annotations

import bisect
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from steadygrad.probe.tree import Tree, is_signal, map_tensors, tensors

ROWS = 16  # samples that are compared with their neighbours
SAMPLED = 1 << 14  # elements that shares and spreads are read from
Array = NDArray[np.float64]
HALF = (torch.float16, torch.bfloat16)
TORCH = os.path.dirname(torch.__file__)
REPLAY = os.path.join(os.path.dirname(os.path.dirname(__file__)), "replay", "score.py")
OURS = os.path.dirname(os.path.dirname(__file__))


@dataclass(slots=True)
class Call:
    """One call of one module: its name, its class, the call around it, and what it was given.

    `given` are the nodes of what it was given; the tensors themselves are kept as `inputs` for
    outermost calls and recurrent modules only: autograd has freed most of the others.
    """

    index: int
    name: str
    module: nn.Module
    parent: int
    inputs: Tree = None
    given: tuple[Node, ...] = ()
    outputs: list[Node] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """Class name of the module."""
        return type(self.module).__name__


@dataclass(slots=True)
class Op:
    """What one op put out. `log_norm` is log10 of the L2 norm (inf: broken, -inf: all zero).

    `spread` is |h[1:] - h[:-1]| / (sqrt(2) |h|): 1 for unrelated samples, 0 when all look alike;
    `within` the same between the positions (tokens, graph nodes) of one sample, NaN unless the
    output is [samples, positions, features]; `zeros` the share of exact zeros, `zeros_before` in
    what it was given; `dead` the share of units that no sample switched on (relu kin only, else
    NaN; 0 where fewer than 85 % are zero, so that 9 in 10 cannot be); `peak` the largest magnitude
    (NaN unless the dtype is half).
    """

    order: int
    name: str
    call: int
    line: tuple[str, int]
    log_norm: float
    numel: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    spread: float
    within: float
    zeros: float
    peak: float
    zeros_before: float
    dead: float
    sources: tuple[Node, ...]

    @property
    def log_rms(self) -> float:
        """log10 of the root mean square."""
        return self.log_norm - 0.5 * math.log10(max(self.numel, 1))


Show = Callable[["Trace", Callable[..., Any], tuple[Any, ...], Mapping[str, Any], Tensor], None]
"""What an op may be shown to once it has run: (trace, function, args, kwargs, output)."""


class Trace(TorchFunctionMode):
    """Listen to a forward pass. Use `listen`; afterwards read `calls`, `ops`, `entries`, `inputs`.

    `inputs` are the float tensors given to the outermost module calls, made to require grad;
    `entries` the outputs of ops where data without gradient first met a parameter (embeddings);
    `results` what the outermost calls returned; `leaves` what was given to any call with a gradient
    of its own.
    """

    def __init__(self, show: Show | None = None) -> None:
        super().__init__()
        self._show = show
        self.calls: list[Call] = []
        self.ops: dict[Node, Op] = {}
        self.inputs: list[Tensor] = []
        self.entries: list[Tensor] = []
        self.results: list[Tree] = []
        self.leaves: list[Tensor] = []
        self._stack: list[int] = []
        self._numbers: list[int] = []
        self._running: list[int] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,  # torch's own signature
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # whatever func returns
        """Run the op and note each floating output that carries a gradient."""
        if _asks_for_grad(func, args):
            return None
        given = list(tensors((args, kwargs)))
        # read before the op: one that works in place gives its input the node of its output
        sources = tuple(t.grad_fn for t in given if t.grad_fn is not None)
        enters = not sources and any(not t.requires_grad for t in given)
        out = func(*args, **(kwargs or {}))
        if isinstance(out, (Tensor, tuple, list)):
            for tensor in tensors(out):
                node = tensor.grad_fn
                if node is not None and node not in self.ops and is_signal(tensor):
                    self._note(func, sources, enters, tensor, node)
        if self._show is not None and isinstance(out, Tensor):
            self._show(self, func, args, kwargs or {}, out)
        return out

    def _note(
        self,
        func: Callable[..., Any],
        sources: tuple[Node, ...],
        enters: bool,
        out: Tensor,
        node: Node,
    ) -> None:
        if enters:
            self.entries.append(out)
        known = [self.ops[source] for source in sources if source in self.ops]
        with torch.no_grad():
            self.ops[node] = Op(
                len(self.ops),
                getattr(func, "__name__", str(func)),
                self._stack[-1] if self._stack else -1,
                users_line(),
                *_readings(out.detach()),
                zeros_before=known[0].zeros if known else math.nan,
                dead=math.nan,
                sources=sources,
            )
            if _is_relu(func):
                self.ops[node].dead = _dead(out.detach()) if self.ops[node].zeros > 0.85 else 0.0

    def enter(self, name: str, module: nn.Module, inputs: Tree) -> None:
        """Note that a module call begins."""
        parent = self._stack[-1] if self._stack else -1
        given = list(tensors(inputs))
        with torch._C.DisableTorchFunction():  # a look at an attribute is no op of the user's
            self.leaves += [t for t in given if t.grad_fn is None and t.requires_grad]
            nodes = tuple(t.grad_fn for t in given if t.grad_fn is not None)
        kept = inputs if parent == -1 or isinstance(module, nn.RNNBase) else None
        self.calls.append(Call(len(self.calls), name, module, parent, kept, nodes))
        self._stack.append(len(self.calls) - 1)
        self._mark()

    def leave(self, output: Tree) -> None:
        """Note that the innermost module call ends, with its output."""
        if not self._stack:
            return
        call = self.calls[self._stack.pop()]
        with torch._C.DisableTorchFunction():
            found = [t.grad_fn for t in tensors(output)]
        call.outputs = [node for node in found if node is not None]
        if not self._stack:
            self.results.append(output)
        self._mark()

    def _mark(self) -> None:
        number = sequence_number()
        if number is not None:
            self._numbers.append(number)
            self._running.append(self._stack[-1] if self._stack else -1)

    @property
    def running(self) -> str | None:
        """Name of the module whose call is running, the innermost; None outside of all."""
        return self.calls[self._stack[-1]].name if self._stack else None

    def call_of(self, node: Node) -> int:
        """Index of the innermost module call in which this node was made; -1 for none."""
        if node in self.ops:
            return self.ops[node].call
        number = node._sequence_nr()
        place = bisect.bisect_right(self._numbers, number) - 1
        outside = place < 0 or not self._numbers or number > self._numbers[-1]
        return -1 if outside else self._running[place]

    def ancestry(self, call: int) -> list[int]:
        """Call indices from the outermost call down to this one; [] for -1."""
        path = []
        while call >= 0:
            path.append(call)
            call = self.calls[call].parent
        return path[::-1]

    def shared_call(self, calls: Iterator[int]) -> int:
        """Innermost call that contains all the given calls; -1 for none."""
        common: list[int] | None = None
        for call in calls:
            path = self.ancestry(call)
            if common is None:
                common = path
            common = [a for a, b in zip(common, path, strict=False) if a == b]
        return common[-1] if common else -1

    def name_of(self, call: int) -> str:
        """Qualified name of the called module; '' for the root or for code outside of it."""
        return self.calls[call].name if call >= 0 else ""


@contextmanager
def listen(model: nn.Module, show: Show | None = None) -> Iterator[Trace]:
    """Listen to what happens to a model inside the block; its hooks are gone afterwards.

    Each op with a tensor for output is shown to `show`.
    """
    trace = Trace(show)
    handles: list[RemovableHandle] = []
    try:
        for name, one in model.named_modules():
            handles += _hook(trace, name, one)
        with trace:
            yield trace
    finally:
        for handle in handles:
            handle.remove()


def _hook(trace: Trace, name: str, module: nn.Module) -> Iterator[RemovableHandle]:
    def before(module: nn.Module, args: Tree, kwargs: Tree) -> Tree:
        if trace._stack:
            trace.enter(name, module, (args, kwargs))
            return None
        args, kwargs = map_tensors((args, kwargs), lambda t: _opened(trace, t))
        trace.enter(name, module, (args, kwargs))
        return args, kwargs

    def after(_module: nn.Module, _args: Tree, output: Tree) -> None:
        trace.leave(output)

    yield module.register_forward_pre_hook(before, with_kwargs=True)
    yield module.register_forward_hook(after, always_call=True)


def _opened(trace: Trace, tensor: Tensor) -> Tensor:
    """Give a float input a gradient; a clone stands between, so that in-place ops are legal."""
    if tensor.requires_grad or not is_signal(tensor) or not torch.is_grad_enabled():
        return tensor
    leaf = tensor.detach().clone().requires_grad_()
    trace.inputs.append(leaf)
    return leaf.clone()


def _asks_for_grad(func: Callable[..., Any], args: tuple[Any, ...]) -> bool:
    """Whether a model sets `requires_grad` on an input that we gave a gradient already."""
    setter = getattr(func, "__self__", None) is Tensor.requires_grad
    return setter and func.__name__ == "__set__" and args[0].grad_fn is not None


def sequence_number() -> int | None:
    """Return the number that autograd will give to the next node, None where torch hides it."""
    read = getattr(torch._C._autograd, "_get_sequence_nr", None)
    return None if read is None else int(read())


_stand_in: ContextVar[tuple[str, int] | None] = ContextVar("stand_in", default=None)


@contextmanager
def standing_at(line: tuple[str, int]) -> Iterator[None]:
    """Take this for the user's line where an op of theirs is computed again by us."""
    token = _stand_in.set(line)
    try:
        yield
    finally:
        _stand_in.reset(token)


def users_line() -> tuple[str, int]:
    """File and line of the innermost frame that belongs neither to torch nor to us."""
    frame = sys._getframe(1)
    replayed = _stand_in.get()
    while frame is not None:
        file = frame.f_code.co_filename
        if replayed is not None and file == REPLAY:
            return replayed
        if not file.startswith((TORCH, OURS)):
            return file, frame.f_lineno
        frame = frame.f_back  # type: ignore[assignment] # the loop ends on None
    return "", 0


def _readings(
    out: Tensor,
) -> tuple[float, int, tuple[int, ...], torch.dtype, float, float, float, float]:
    log_norm = log10_norm(out)
    size = log_norm, out.numel(), tuple(out.shape), out.dtype
    if log_norm == math.inf or out.numel() == 0:
        return *size, math.nan, math.nan, math.nan, math.nan
    rows = array(thin(out))
    zeros = 1 - np.count_nonzero(rows) / rows.size
    return *size, _spread(rows), within(out), zeros, _peak(out)


def within(out: Tensor) -> float:
    """How different neighbouring positions of the first sample are; see `spread`."""
    return spread(thin(out[0])) if out.dim() == 3 and out.shape[1] > 1 else math.nan


def _is_relu(func: Callable[..., Any]) -> bool:
    return getattr(func, "__name__", "").rstrip("_") in ("relu", "relu6", "threshold", "hardtanh")


def _dead(out: Tensor) -> float:
    """Share of units (channels of images, last axis otherwise) that are zero throughout."""
    if out.dim() < 2 or out.numel() == 0:
        return math.nan
    axes = [axis for axis in range(out.dim()) if axis != (1 if out.dim() > 3 else out.dim() - 1)]
    off = out.amax(axes) == 0
    return float(off.sum()) / off.numel()


def log10_norm(tensor: Tensor) -> float:
    """log10 of the L2 norm, also beyond its dtype's range: -inf for all zero, inf for broken."""
    if tensor.numel() == 0:
        return -math.inf
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    norm = float(torch.linalg.vector_norm(tensor, dtype=_wide(tensor.dtype)))
    if 1e-15 < norm < 1e15:
        return math.log10(norm)
    peak = float(tensor.abs().max())
    if peak == 0.0:
        return -math.inf
    if not math.isfinite(peak):
        return math.inf
    scaled = tensor.double() / peak
    return math.log10(peak) + math.log10(float(torch.linalg.vector_norm(scaled)))


def thin(tensor: Tensor) -> Tensor:
    """View at most ROWS samples and about SAMPLED elements of a tensor: [rows, elements]."""
    if tensor.dim() < 2:
        return tensor.reshape(-1, 1)[:SAMPLED]
    while tensor.shape[0] == 1 and tensor.dim() > 2:
        tensor = tensor[0]
    rows = tensor[:ROWS] if tensor.shape[0] > ROWS else tensor
    rows = rows.reshape(rows.shape[0], -1) if rows.dim() > 2 else rows
    stride = rows.numel() // SAMPLED
    return rows[:, ::stride] if stride > 1 else rows


def spread(rows: Tensor) -> float:
    """How different neighbouring samples are: |h[1:] - h[:-1]| / (sqrt(2) |h|); [rows, parts]."""
    return _spread(array(rows))


def _spread(rows: Array) -> float:
    if len(rows) < 2:
        return math.nan
    size = _norm(rows) * math.sqrt(1 - 1 / len(rows))
    return _norm(rows[1:] - rows[:-1]) / (math.sqrt(2) * size) if size else math.nan


def _norm(rows: Array) -> float:
    return math.sqrt(np.einsum("ij,ij->", rows, rows))


def array(tensor: Tensor) -> Array:
    """Return a tensor's values in float64, outside of torch: many small ops cost less there."""
    found: Array = tensor.detach().double().cpu().numpy()
    return found


def _peak(out: Tensor) -> float:
    return float(out.abs().max()) if out.dtype in HALF else math.nan


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype is torch.float64 else torch.float32
