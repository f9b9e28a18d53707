"""Notes how the loss of a step was computed, outside of all modules; inside of them it sleeps.

`Module.__call__` is replaced on the class, so that nothing is stored on any module. The tape, a
TorchFunctionMode, is taken off the stack while an outermost module runs, in backward passes, and in
optimizer steps: ops there cost nothing. In sampled steps an outermost call is shown to `tap`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from steadygrad.probe.tree import Tree
from steadygrad.replay.tape import Tape
from steadygrad.taps.modes import put_beneath
from steadygrad.taps.patch import Around, Patch, put_back, replace

UNHEARD = ((torch.Tensor, "backward"), (Optimizer, "zero_grad"), (nn.Module, "zero_grad"))
"""Functions in which the tape sleeps: they ask much of every parameter, or end in what we hear.

A mode that handles a function is put back on the stack when that returns, wherever it was then.
"""


class Tap(Protocol):
    """Who is shown module calls in sampled steps."""

    def running(self) -> AbstractContextManager[object]:
        """Surround an outermost call."""

    def entered(self, module: nn.Module) -> None:
        """A module begins to run."""

    def seen(self, module: nn.Module, output: Tree) -> None:
        """Look at what a module has put out."""


class Recorder:
    """A tape beside a training. `tap` is set in sampled steps."""

    def __init__(self) -> None:
        self.tape = Tape(thorough=False)
        self.tap: Tap | None = None
        self.active = False
        self.restore: Callable[[], None] = self.sleep
        self.stopped = ""  # why nothing is noted any more
        self.inside = 0
        self._paused = self._dozes = False
        self._called = False  # whether a module was noted since the last backward pass
        self._home = (os.getpid(), threading.get_ident())

    def stop(self, why: str) -> None:
        """Note nothing from now on, let go of what was noted, and put torch back as it was."""
        self.stopped = self.stopped or why
        spent, self.tape, self.tap = self.tape.spent, Tape(thorough=False), None
        self.tape.spent = spent
        self.restore()

    def sleep(self) -> None:
        """Take the tape off the stack of modes."""
        if torch._C._len_torch_function_stack():
            put_beneath(None, Tape)

    def wake(self) -> None:
        """Put the tape back, unless something says that it is to sleep."""
        if not (self.stopped or self.inside or self._dozes):
            put_beneath(self.tape, Tape)

    def nap(self) -> bool:
        """Take the tape off for what we ourselves compute; whether it was on."""
        return bool(torch._C._len_torch_function_stack()) and put_beneath(None, Tape)

    def pause(self) -> None:
        """Note nothing until `resume` is called."""
        if not self._paused:
            self._paused = True
            self._dozes = False
            self.inside += 1
            self.sleep()

    def resume(self) -> None:
        """Note again what happens; in a loop that calls modules, from the next call of one on.

        What stands between, clipping and the like, asks much of every parameter.
        """
        if self._paused:
            self._paused = False
            self.inside -= 1
            self._dozes = self._called
            self.wake()

    @contextmanager
    def asleep(self) -> Iterator[None]:
        """Note nothing inside the block: a backward pass, what we ourselves compute."""
        self.inside += 1
        self.sleep()
        try:
            yield
        finally:
            self.inside -= 1
            self.wake()

    def call(
        self, original: Callable[..., Any], module: nn.Module, *args: Any, **kwargs: Any
    ) -> Any:
        """Run a module's `__call__`."""
        if self.inside:
            return self._shown(original, module, *args, **kwargs)
        if self._home != (os.getpid(), threading.get_ident()):
            return original(module, *args, **kwargs)
        grows = torch.is_grad_enabled() and not self.stopped
        self._dozes = self._dozes and not grows
        self.inside += 1
        self.sleep()
        try:
            if not grows:
                return original(module, *args, **kwargs)
            return self._noted(original, module, args, kwargs)
        finally:
            self.inside -= 1
            self.wake()

    def _noted(
        self, original: Callable[..., Any], module: nn.Module, args: Tree, kwargs: Tree
    ) -> Any:
        self._called = True
        return self.tape.note(self._outermost(original, module), module, args, kwargs)

    def function(self, run: Callable[..., Any], args: Tree, kwargs: dict[str, Any]) -> Any:
        """Run a custom autograd function."""
        if self.inside or self.stopped or not self.tape.listens():
            return run(*args, **kwargs)
        with self.asleep():
            return self.tape.note(run, None, args, kwargs)

    def _shown(
        self, original: Callable[..., Any], module: nn.Module, *args: Any, **kwargs: Any
    ) -> Any:
        tap = self.tap
        if tap is None:
            return original(module, *args, **kwargs)
        tap.entered(module)
        out = original(module, *args, **kwargs)
        tap.seen(module, out)
        return out

    def _outermost(self, original: Callable[..., Any], module: nn.Module) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:  # whatever the module returns
            with nullcontext() if self.tap is None else self.tap.running():
                return self._shown(original, module, *args, **kwargs)

        return run


@contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """Note module calls, custom autograd functions, and torch functions in the block."""
    with ExitStack() as stack:
        recorder.restore = stack.close
        stack.enter_context(_calls_heard(recorder))
        stack.callback(recorder.sleep)
        recorder.wake()
        yield


@contextmanager
def _calls_heard(recorder: Recorder) -> Iterator[None]:
    original, apply = vars(nn.Module)["__call__"], vars(torch.autograd.Function)["apply"]

    def heard(module: nn.Module, *args: Any, **kwargs: Any) -> Any:  # whatever it returns
        if not recorder.active or (recorder.inside and recorder.tap is None):
            return original(module, *args, **kwargs)
        return recorder.call(original, module, *args, **kwargs)

    def applied(cls: type, *args: Any, **kwargs: Any) -> Any:  # whatever it returns
        run = apply.__get__(None, cls)
        return recorder.function(run, args, kwargs) if recorder.active else run(*args, **kwargs)

    heard.__wrapped__ = original  # type: ignore[attr-defined] # as functools.wraps, for signatures
    calls = replace(nn.Module, "__call__", heard)
    applications = replace(torch.autograd.Function, "apply", classmethod(applied))
    patches = [Patch(owner, name, _unheard(recorder)) for owner, name in UNHEARD]
    recorder.active = True
    try:
        yield
    finally:
        recorder.active = False
        for patch in patches:
            patch.remove()
        put_back(nn.Module, "__call__", calls)
        put_back(torch.autograd.Function, "apply", applications)


def _unheard(recorder: Recorder) -> Around:
    """Put the tape to sleep in a function."""

    def around(run: Callable[..., Any]) -> Callable[..., Any]:
        def unheard(*args: Any, **kwargs: Any) -> Any:  # whatever it returns
            slept = recorder.nap()
            try:
                return run(*args, **kwargs)
            finally:
                if slept:
                    recorder.wake()

        return unheard

    return around
