"""Leave torch._dynamo out of a process that compiles nothing: to import it takes two seconds.

A torch optimizer imports it when it is made and when it steps, only to say that compilers shall
leave it alone. Where nothing is compiled there is nobody to tell. Tested with torch 2.13; a torch
that does this in another way imports what it wants, and is slower but not wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.machinery import ModuleSpec
from types import CodeType, FunctionType, ModuleType, SimpleNamespace
from typing import Any

import torch
from torch.optim import Optimizer, optimizer

DYNAMO = "torch._dynamo"
KEPT = "__dynamo_disable"  # where torch's wrapper keeps what it calls instead of the function
Step = Callable[[Optimizer], object]


@contextmanager
def when_loaded(then: Callable[[], object]) -> Iterator[None]:
    """Call `then` as soon as torch._dynamo is loaded while in the block: at once where it is."""
    if DYNAMO in sys.modules:
        then()
        yield
        return
    finder = _finder(then)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        if finder in sys.meta_path:
            sys.meta_path.remove(finder)


@contextmanager
def eager() -> Iterator[None]:
    """Run compiled functions eagerly inside the block, where this torch can be told so."""
    stance = getattr(torch.compiler, "set_stance", None)
    if stance is None:
        yield
        return
    with ExitStack() as stack, when_loaded(lambda: stack.enter_context(stance("force_eager"))):
        yield


@contextmanager
def optimizers_made_without() -> Iterator[None]:
    """Make optimizers without torch._dynamo inside the block, until somebody else imports it."""
    functions = [] if DYNAMO in sys.modules else _disabled(Optimizer)

    def forget() -> None:
        for one in functions:
            if vars(one).get(KEPT) is one:
                delattr(one, KEPT)

    for one in functions:
        vars(one).setdefault(KEPT, one)
    try:
        with when_loaded(forget):
            yield
    finally:
        forget()


def stepped_without(step: Step) -> Step:
    """Return an optimizer's step without its breaks in a compiler's graph, where none compiles."""
    code = _code(getattr(optimizer, "_use_grad_for_differentiable", None))
    if DYNAMO in sys.modules or code is None or getattr(step, "__code__", None) is not code:
        return step
    bare: Step = step.__wrapped__  # type: ignore[attr-defined] # by functools.update_wrapper

    def unbroken(one: Optimizer) -> object:
        with torch.set_grad_enabled(one.defaults["differentiable"]):
            return bare(one)

    return unbroken


def _finder(then: Callable[[], object]) -> Any:  # a finder is whatever has a find_spec
    """Find torch._dynamo where the finders behind this one do, and call `then` once it has run."""

    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != DYNAMO or finder not in sys.meta_path:
            return None
        behind = sys.meta_path[sys.meta_path.index(finder) + 1 :]
        found = (one.find_spec(name, path, target) for one in behind)
        spec = next((one for one in found if one is not None), None)
        if spec is not None and spec.loader is not None:
            _call_after(spec.loader, lambda: then() if finder in sys.meta_path else None)
        return spec

    finder = SimpleNamespace(find_spec=find_spec)
    return finder


def _call_after(loader: Any, then: Callable[[], object]) -> None:
    """Have a loader call a function once it has run its module."""
    execute = loader.exec_module

    def run(module: ModuleType) -> None:
        vars(loader).pop("exec_module", None)  # this one, in front of the class's own
        execute(module)
        then()

    loader.exec_module = run


def _disabled(home: type) -> list[FunctionType]:
    """Functions of a class that torch calls through a wrapper which imports torch._dynamo."""
    code = _code(getattr(torch, "_disable_dynamo", None))
    if code is None or KEPT not in code.co_consts:
        return []
    wrappers = [one for one in vars(home).values() if getattr(one, "__code__", None) is code]
    return [one.__wrapped__ for one in wrappers if isinstance(one.__wrapped__, FunctionType)]


def _code(decorator: Callable[..., Any] | None) -> CodeType | None:
    """Code that all functions which a decorator returns have in common."""
    return None if decorator is None else getattr(decorator(lambda: None), "__code__", None)
