"""A Tape notes how a loss was computed, call by call, so that it can be computed again.

An entry is an outermost module call, or a torch function called outside of any module, whose
output carries a gradient. Entries hang on the tensors they made: what the script drops is dropped
here too, so a long evaluation costs no memory. What carries no gradient is a constant.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from steadygrad.probe.graph import reachable as below
from steadygrad.probe.trace import users_line
from steadygrad.probe.tree import PLAIN, Tree, map_tensors, tensors
from steadygrad.probe.wrappers import unwrapped
from steadygrad.replay.births import Births
from steadygrad.replay.randomness import Generators, generators, same, torchs_generators

SMALL = 1 << 20  # elements of buffers that are noted before a module call, against power iterations
RECENT = 8  # modules whose last call is kept until the step is made
LOOKED_INTO = 2  # levels of plain objects (distributions, batches) in which tensors are sought
IN_PLACE = frozenset(
    f"__{name}__"
    for name in ("setitem", "iadd", "isub", "imul", "itruediv", "ifloordiv", "ipow", "imod")
)
UNNOTED = frozenset([torch.Tensor.backward, torch._C._set_grad_enabled]) | frozenset(
    getattr(vars(torch._C.TensorBase)[name], access)
    for name in (
        "grad",
        "shape",
        "device",
        "dtype",
        "requires_grad",
        "is_leaf",
        "grad_fn",
        "layout",
    )
    for access in ("__get__", "__set__")
    if name in vars(torch._C.TensorBase)
)
"""What loops ask of every parameter in every step: no ops of the loss, and passed on at once."""


@dataclass(slots=True, eq=False, weakref_slot=True)
class Entry:
    """One noted call: what was run, with what, and under which circumstances.

    `links` says, by id, which tensors among the arguments were made by earlier entries, `fresh`
    which were changed in place and have to be cloned; `after` are entries that changed the
    arguments through a view; `line` is the script's file and line. `called` is the module
    that ran, also one without open parameters, which `module` leaves out. `lost` names a gradient
    whose origin the tape did not see. What is not `settled` still lacks module and links.
    """

    order: int
    run: Callable[..., Any]
    module: nn.Module | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rng: Generators
    autocast: tuple[tuple[str, torch.dtype], ...]
    links: dict[int, Made] = field(default_factory=dict)
    fresh: dict[int, Tensor] = field(default_factory=dict)
    buffers: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    after: list[Entry] = field(default_factory=list)
    changed: Tensor | None = None
    lost: str = ""
    line: tuple[str, int] = ("", 0)
    called: nn.Module | None = None
    settled: bool = True

    def given(self) -> list[Tensor]:
        """Tensors among the arguments that may be replaced when the entry is run again."""
        return list(tensors((self.args, self.kwargs)))

    def results(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Tree) -> list[Tensor]:
        """Tensors that this entry makes, in an order that is the same when it is run again."""
        changed = _target(args, kwargs) if self.changed is not None else None
        return [*reachable(out), *([] if changed is None else [changed])]


@dataclass(frozen=True, slots=True)
class Made:
    """The tensor that is the `place`-th result of an entry; `before` that was changed in place."""

    entry: Entry
    place: int
    before: Made | None = None


@dataclass(frozen=True, slots=True)
class Detached:
    """A detach: its file and line, and the ids of the leaves that were behind it."""

    line: tuple[str, int]
    leaves: frozenset[int]


class Tape(TorchFunctionMode):
    """Note module calls and torch functions of this thread and process while active.

    `refuse`, once it is set, is called before every torch function: it ends a script that goes on
    after its first step. `births` are the constants that broke. A tape that is not `thorough` is
    meant to run along with a training: it looks at no values, notes neither buffers nor the
    generators of Python and NumPy, and settles what hangs together only when somebody asks. `spent`
    are the seconds that its notes have taken, `fault` is what ended them.
    """

    def __init__(self, *, thorough: bool = True) -> None:
        super().__init__()
        self.thorough = thorough
        self.spent = 0.0
        self.fault: Exception | None = None
        self.refuse: Callable[[], None] | None = None
        self.births = Births()
        self._running: Entry | None = None
        self._recent: dict[int, Entry] = {}  # last call of each module, by id, the newest last
        self._made = WeakTensorKeyDictionary()
        self._detached = WeakTensorKeyDictionary()
        self._changes = WeakTensorKeyDictionary()
        self._count = 0
        self._inside = 0
        self._rng: Generators | None = None
        self._home = (os.getpid(), threading.get_ident())

    def forget(self) -> None:
        """Let go of the last module call; what tensors of the script hang on stays with them."""
        self._running = None
        self._recent.clear()

    @property
    def latest(self) -> Entry | None:
        """The last outermost call of a module with open parameters."""
        ran = [self._settled(one) for one in reversed(self._recent.values())]
        return next((one for one in ran if one.module is not None), None)

    @property
    def running(self) -> Entry | None:
        """A call of such a module that has begun, or has raised."""
        one = None if self._running is None else self._settled(self._running)
        return one if one is not None and one.module is not None else None

    def made(self, tensor: Tensor) -> Made | None:
        """Where a tensor came from; None when the tape did not see it."""
        found: Made | None = self._made.get(tensor)
        if found is not None:
            self._settled(found.entry)
        return found

    def detached(self, tensor: Tensor) -> Detached | None:
        """Where a constant was detached from its history; None for another."""
        found: Detached | None = self._detached.get(tensor)
        return found

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,  # torch's own signature
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # whatever func returns
        """Run a torch function; note it when it stands outside of all modules."""
        if self.refuse is not None:
            self.refuse()
        if self._inside or (not self.thorough and func in UNNOTED):
            return func(*args, **(kwargs or {}))
        if not torch.is_grad_enabled() or self.fault is not None or _reads(func, args):
            out = func(*args, **(kwargs or {}))
            if self.thorough:
                self.births.note(func, (args, kwargs), out)
            return out
        return self.note(func, None, args, dict(kwargs or {}))

    def is_home(self) -> bool:
        """Whether this is the thread and process that the tape was made in."""
        return self._home == (os.getpid(), threading.get_ident())

    def listens(self) -> bool:
        """Whether calls are noted here: at home, outside of other calls, with gradients on."""
        return not self._inside and torch.is_grad_enabled() and self.is_home()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Note nothing inside the block (what a backward pass recomputes)."""
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    def note(
        self,
        run: Callable[..., Any],
        module: nn.Module | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:  # whatever run returns
        """Run a function and put it on the tape if what it returns or changes has a history."""
        self._inside += 1
        try:
            entry = self._carefully(self._begun, run, module, args, kwargs)
            out = run(*args, **kwargs)
            self._carefully(self._ended, entry, run, args, kwargs, out)
        finally:
            self._inside -= 1
        return out

    def _carefully(self, act: Callable[..., Any], *given: Any) -> Any:  # what `act` returns
        """Do our part of a call, on the clock; beside a training a fault of ours ends the notes."""
        if self.fault is not None:
            return None
        begin = time.perf_counter()
        try:
            with torch._C.DisableTorchFunction():
                return act(*given)
        except Exception as error:  # whatever a user's objects raise when they are looked at
            if self.thorough:
                raise
            self.fault = error
            return None
        finally:
            self.spent += time.perf_counter() - begin

    def _begun(
        self,
        run: Callable[..., Any],
        module: nn.Module | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Entry | None:
        if module is None or self.thorough:
            opened = module is not None and _is_open(module)
            if not opened and not _is_open_tree((args, kwargs)):
                return None
        self._count += 1
        given = _copied(args, kwargs)  # of the containers
        entry = Entry(self._count, run, None, *given, self._generators(), _autocast())
        entry.line, entry.called, entry.settled = users_line(), module, False
        if module is not None:
            self._running = entry
        if self.thorough:
            self._settled(entry)
        if module is None and _is_in_place(run, kwargs):
            self._settled(entry)
            entry.changed = _target(args, kwargs)
            self._prepare(entry)
        return entry

    def _ended(
        self,
        entry: Entry | None,
        run: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        out: Tree,
    ) -> None:
        if entry is not None:
            self._keep(entry, entry.results(args, kwargs, out))
            if entry.called is not None:
                self._running = None
                self._remember(entry, id(entry.called))
        elif self.thorough:
            self.births.note(run, (args, kwargs), out)

    def _remember(self, entry: Entry, module: int) -> None:
        """Keep the last call of each module, of the newest few."""
        self._recent.pop(module, None)
        self._recent[module] = entry
        if len(self._recent) > RECENT:
            del self._recent[next(iter(self._recent))]

    def _settled(self, entry: Entry) -> Entry:
        """Find out what an entry is made of, unless that is known."""
        if not entry.settled:
            entry.settled = True
            called = entry.called
            if called is not None and _is_open(called):
                entry.module = unwrapped(called)
                if self.thorough:
                    entry.buffers = _small_buffers(entry.module)
            self._link(entry)
        return entry

    def _link(self, entry: Entry) -> None:
        changed = len(self._changes) > 0
        replaceable: set[int] | None = None
        for tensor in reachable((entry.args, entry.kwargs)):
            if changed:
                before = self._changes.get(_base(tensor), [])
                entry.after += [one for one in before if one.order < entry.order]
            if tensor.grad_fn is None:
                continue
            made = self.made(tensor)
            while made is not None and made.entry.order > entry.order:
                made = made.before
            if replaceable is None:
                replaceable = {id(t) for t in tensors((entry.args, entry.kwargs))}
            if made is None:
                entry.lost = entry.lost or tensor.grad_fn.name()
            elif id(tensor) in replaceable:
                entry.links[id(tensor)] = made
            else:
                entry.lost = f"an object of {getattr(entry.run, '__name__', 'a call')}"

    def _prepare(self, entry: Entry) -> None:
        """Keep the values of a constant that is about to be changed in place."""
        changed = entry.changed
        if changed is not None and id(changed) not in entry.links and not changed.requires_grad:
            with torch.no_grad():
                entry.fresh[id(changed)] = changed.detach().clone()

    def _keep(self, entry: Entry, results: list[Tensor]) -> None:
        for place, tensor in enumerate(results):
            if tensor.grad_fn is not None:
                self._made[tensor] = Made(entry, place, self._made.get(tensor))
            elif self.thorough and getattr(entry.run, "__name__", "") == "detach":
                self._detached[tensor] = Detached(entry.line, _leaves(entry.args[0]))
        changed = entry.changed
        if changed is not None and changed.grad_fn is not None:
            base = _base(changed)
            self._changes[base] = [*self._changes.get(base, []), entry]

    def _generators(self) -> Generators:
        if not self.thorough:
            return torchs_generators()
        now = generators()
        if self._rng is None or not same(self._rng, now):
            self._rng = now
        return self._rng


def ancestors(ends: list[Made]) -> list[Entry]:
    """Entries that the given results depend on, in the order in which they ran."""
    found: dict[int, Entry] = {}
    waiting = [end.entry for end in ends]
    while waiting:
        entry = waiting.pop()
        if entry.order not in found:
            found[entry.order] = entry
            waiting += [made.entry for made in entry.links.values()]
            waiting += [one for one in entry.after if one.order < entry.order]
    return [found[order] for order in sorted(found)]


def reachable(tree: Tree, depth: int = LOOKED_INTO) -> list[Tensor]:
    """Tensors in containers, and in the attributes of plain objects (distributions)."""
    found: list[Tensor] = []
    _gather(tree, depth, found)
    return found


def _gather(tree: Tree, depth: int, found: list[Tensor]) -> None:
    if isinstance(tree, Tensor):
        found.append(tree)
        return
    kind = type(tree)
    if kind in PLAIN:
        return
    if isinstance(tree, Mapping):
        tree = tuple(tree.values())
    if isinstance(tree, (tuple, list)) and kind.__module__ != "torch.nn.utils.rnn":
        for value in tree:
            _gather(value, depth, found)
        return
    inside = list(tensors(tree))
    found += inside
    if not inside and depth and not isinstance(tree, (nn.Module, type)):
        attributes = getattr(tree, "__dict__", None)
        if isinstance(attributes, dict):
            _gather(tuple(attributes.values()), depth - 1, found)


@contextmanager
def module_calls(tape: Tape) -> Iterator[None]:
    """Show the tape every outermost module call, custom autograd function, and vmap in the block.

    `Module.__call__` is replaced, since global forward pre-hooks are not given keyword arguments;
    `vmap`, since what it returns is unwrapped below all torch functions.
    """
    call, function, vmap = nn.Module.__call__, torch.autograd.Function, torch.vmap
    apply = vars(function)["apply"]

    def heard(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not tape.listens():
            return call(module, *args, **kwargs)
        return tape.note(_bound(call, module), module, args, kwargs)

    def applied(cls: type, *args: Any, **kwargs: Any) -> Any:
        run = apply.__get__(None, cls)
        return tape.note(run, None, args, kwargs) if tape.listens() else run(*args, **kwargs)

    def mapped(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[..., Any]:
        run = vmap(func, *args, **kwargs)
        return lambda *a, **k: tape.note(run, None, a, k) if tape.listens() else run(*a, **k)

    heard.__wrapped__ = call  # type: ignore[attr-defined] # as functools.wraps, for signatures
    nn.Module.__call__ = heard  # type: ignore[method-assign] # put back below
    function.apply = classmethod(applied)  # type: ignore[assignment,method-assign] # put back below
    torch.vmap = torch.func.vmap = mapped  # put back below
    try:
        yield
    finally:
        torch.vmap = torch.func.vmap = vmap
        nn.Module.__call__ = call  # type: ignore[method-assign] # as it was
        function.apply = apply  # type: ignore[method-assign] # as it was


def _copied(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments whose containers, which a script may change, are copies."""
    copied: tuple[tuple[Any, ...], dict[str, Any]] = map_tensors((args, kwargs), lambda t: t)
    return copied


def _bound(call: Callable[..., Any], module: nn.Module) -> Callable[..., Any]:
    return lambda *args, **kwargs: call(module, *args, **kwargs)


def _is_open(module: nn.Module) -> bool:
    """Whether a module has a parameter that wants a gradient."""
    return any(parameter.requires_grad for parameter in module.parameters())


def _is_open_tree(tree: Tree) -> bool:
    """Whether a tensor among the arguments wants a gradient."""
    return any(tensor.requires_grad for tensor in reachable(tree))


def _reads(func: Callable[..., Any], args: tuple[Any, ...]) -> bool:
    """Whether this reads an attribute that is no tensor with a history, as a shape or a dtype."""
    if getattr(func, "__name__", "") != "__get__":
        return False
    with torch._C.DisableTorchFunction():
        found = func(*args)
        return not isinstance(found, Tensor) or found.grad_fn is None


def _is_in_place(run: Callable[..., Any], kwargs: Mapping[str, Any]) -> bool:
    name = getattr(run, "__name__", "")
    plain = name.endswith("_") and not name.endswith("__")
    return plain or name in IN_PLACE or kwargs.get("out") is not None or bool(kwargs.get("inplace"))


def _target(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Tensor that an in-place function changes."""
    for found in (kwargs.get("out"), *args[:1], kwargs.get("input")):
        if isinstance(found, Tensor):
            return found
    return None


def _leaves(tensor: Tensor) -> frozenset[int]:
    nodes = [] if tensor.grad_fn is None else below(tensor.grad_fn)
    variables = (getattr(node, "variable", None) for node in nodes)
    return frozenset(id(one) for one in variables if one is not None)


def _base(tensor: Tensor) -> Tensor:
    base = tensor._base if tensor._is_view() else None
    return tensor if base is None else base


def _small_buffers(module: nn.Module) -> list[tuple[Tensor, Tensor]]:
    buffers = list(module.buffers())
    if sum(buffer.numel() for buffer in buffers) > SMALL:
        return []
    with torch.no_grad():
        return [(buffer, buffer.detach().clone()) for buffer in buffers]


def _autocast() -> tuple[tuple[str, torch.dtype], ...]:
    kinds = ("cpu", "cuda")
    return tuple(
        (kind, torch.get_autocast_dtype(kind)) for kind in kinds if torch.is_autocast_enabled(kind)
    )
