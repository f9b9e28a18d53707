"""Run a user's script, unchanged, up to its first optimizer step, and capture what it would train.

The script runs as `__main__` with its own arguments. When its first optimizer steps, or a loss
scaler is asked to, nothing has moved yet: a private signal, which is no Exception, ends it there.
A script that catches everything and goes on meets the signal again at its next torch call; one
that does so many times is left where it stands, and the process ends from within. Whatever the
script itself wrote before its first step is its own business.
"""

from __future__ import annotations

import os
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from steadygrad.launch.main import main_of
from steadygrad.probe.dynamo import optimizers_made_without
from steadygrad.probe.garbage import watched
from steadygrad.replay.assemble import Heard, assemble
from steadygrad.replay.captured import CannotLook, Captured, UsersError
from steadygrad.replay.owners import variables
from steadygrad.replay.score import Term, reached
from steadygrad.replay.tape import Tape, module_calls

CANNOT_LOOK = 2  # exit code, as everywhere in steadygrad
PATIENCE = 20  # times that a script may swallow the signal before the process is ended from within

Then = Callable[[Captured], int]
"""What is done with the captured model while the script's modules are still in place."""


class FirstStep(BaseException):
    """The signal that ends a script at its first optimizer step; no error, never shown."""


@dataclass(slots=True)
class Session:
    """One run of a script: what was heard, and what came of it."""

    path: str
    then: Then
    heard: Heard
    home: int = field(default_factory=os.getpid)
    unscaled: list[tuple[weakref.ref[Tensor], Tensor]] = field(default_factory=list)
    captured: Captured | None = None
    failure: BaseException | None = None
    refused: int = 0

    def refuse(self) -> None:
        """End a script that goes on after its first step; from within when it insists."""
        if os.getpid() != self.home:
            return
        self.refused += 1
        if self.refused > PATIENCE:
            self.heard.tape.refuse = None
            _leave(CANNOT_LOOK if self.captured is None else self.then(self.captured))
        raise FirstStep

    @property
    def ended(self) -> bool:
        """Whether the first step was reached, whatever came of it."""
        return self.captured is not None or self.failure is not None

    def outcome(self) -> int:
        """Do what was to be done with the captured model, in place of the rest of the script."""
        if self.failure is not None:
            raise self.failure
        if self.captured is None:
            raise CannotLook(
                f"expected {self.path} to step an optimizer, it ended without one: give the "
                "training script, or a function that builds the model (file.py:build)"
            )
        return self.then(self.captured)


def run(path: str, arguments: Sequence[str], then: Then) -> int:
    """Run a script up to its first optimizer step and return `then(captured)`.

    Raises UsersError when the script raises, CannotLook when it ends without a step, and
    KeyboardInterrupt as it comes.
    """
    session = Session(path, then, Heard(Tape()))
    with as_main(path, arguments) as module:
        with _listening(session, module):
            _execute(module, session)
        return session.outcome()


def _execute(module: types.ModuleType, session: Session) -> None:
    try:
        source = Path(session.path).read_bytes()
        exec(compile(source, module.__file__ or "", "exec", dont_inherit=True), vars(module))
    except BaseException as error:
        if not session.ended:
            raise _before_the_step(session, error) from error


def _before_the_step(session: Session, error: BaseException) -> BaseException:
    """Return what is to be raised for a script that ended before its first step."""
    if isinstance(error, KeyboardInterrupt):
        return KeyboardInterrupt()
    if isinstance(error, SystemExit):
        return CannotLook(
            f"expected {session.path} to step an optimizer, it exited with {_exit_code(error)} "
            "before its first step: give it the arguments it trains with"
        )
    return UsersError()


@contextmanager
def as_main(path: str, arguments: Sequence[str]) -> Iterator[types.ModuleType]:
    """Make a `__main__` for a script, with its `sys.argv` and `sys.path[0]`, as Python does."""
    module = main_of(path)
    before = sys.modules["__main__"], sys.argv, list(sys.path)
    sys.modules["__main__"], sys.argv = module, [path, *arguments]
    sys.path[:1] = [str(Path(path).resolve().parent)]
    try:
        yield module
    finally:
        sys.modules["__main__"], sys.argv, sys.path[:] = before


@contextmanager
def _listening(session: Session, module: types.ModuleType) -> Iterator[None]:
    tape = session.heard.tape
    with ExitStack() as stack:
        stack.enter_context(_environment("TORCHDYNAMO_DISABLE", "1"))  # compile() stays eager
        stack.enter_context(optimizers_made_without())
        stack.enter_context(_silent_in_threads())
        stack.enter_context(_backward_heard(session))
        stack.enter_context(_scaler_heard(session, module))
        stack.enter_context(_clipping_heard(session))
        stack.enter_context(_optimizers_heard(session))
        hook = register_optimizer_step_pre_hook(_step_hook(session, module))
        stack.callback(hook.remove)
        session.heard.garbage = stack.enter_context(watched())
        stack.enter_context(module_calls(tape))
        stack.enter_context(tape)
        yield


def _step_hook(session: Session, module: types.ModuleType) -> Callable[..., None]:
    def before_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if os.getpid() == session.home:
            closure = next((a for a in (*args[1:], *kwargs.values()) if callable(a)), None)
            _first_step(session, module, optimizer, closure)

    return before_step


def _first_step(
    session: Session,
    module: types.ModuleType,
    optimizer: Optimizer,
    closure: Callable[[], Any] | None,
) -> None:
    """Capture what is about to be trained, then end the script."""
    tape = session.heard.tape
    if tape.refuse is not None:
        tape.refuse()
    if not tape.is_home():
        session.failure = CannotLook(
            f"expected {session.path} to train in its main thread, it stepped its optimizer in "
            f"{threading.current_thread().name}: call the training function directly"
        )
        raise FirstStep
    if closure is not None:
        session.heard.closure = True
        with torch.enable_grad():
            closure()
    try:
        visible = variables(sys._getframe(1), vars(module))
        with torch._C.DisableTorchFunction():
            session.captured = assemble(session.heard, optimizer, visible)
    except Exception as error:
        session.failure = error
    tape.refuse = session.refuse
    raise FirstStep


@contextmanager
def _clipping_heard(session: Session) -> Iterator[None]:
    """Note whether gradients are clipped by norm, however the script imported that."""
    home = torch.nn.utils.clip_grad
    norm = getattr(home, "_get_total_norm", None)
    if norm is None:  # before torch 2.6
        yield
        return

    def heard(*args: Any, **kwargs: Any) -> Any:  # whatever torch's own returns
        session.heard.clipped = True
        return norm(*args, **kwargs)

    home._get_total_norm = heard
    try:
        yield
    finally:
        home._get_total_norm = norm


@contextmanager
def _backward_heard(session: Session) -> Iterator[None]:
    """Note on which tensors backward passes start, while in the block."""
    backward = torch.autograd.backward

    def heard(tensors: Any, grad_tensors: Any = None, *args: Any, **kwargs: Any) -> Any:
        if not session.heard.tape.is_home():
            return backward(tensors, grad_tensors, *args, **kwargs)
        _note_backward(session, tensors, grad_tensors)
        with session.heard.tape.paused():
            return backward(tensors, grad_tensors, *args, **kwargs)

    torch.autograd.backward = heard  # put back below
    try:
        yield
    finally:
        torch.autograd.backward = backward


def _note_backward(session: Session, roots: Any, weights: Any) -> None:
    """Keep the terms of one backward pass; scaled losses are taken before their scaling."""
    roots = [roots] if isinstance(roots, Tensor) else list(roots)
    weights = [weights] * len(roots) if isinstance(weights, Tensor | None) else list(weights)
    terms: list[Term] = []
    with torch._C.DisableTorchFunction():
        for root, weight in zip(roots, weights, strict=True):
            loss = next((before for after, before in session.unscaled if after() is root), root)
            made = session.heard.tape.made(loss)
            if made is None:
                session.heard.unseen.append("backward() started on a tensor made out of sight")
                return
            value = loss.detach() if weight is None else loss.detach() * weight
            terms.append(Term(made, weight, float(value.sum()), reached(loss)))
    session.heard.passes.append(terms)


@contextmanager
def _scaler_heard(session: Session, module: types.ModuleType) -> Iterator[None]:
    """Note what loss scalers scale, and take their step for the optimizer's, while in the block.

    A scaler that meets a non-finite gradient skips the optimizer's step, perhaps for ever.
    """
    scaler = torch.amp.GradScaler
    scale, step = scaler.scale, scaler.step

    def heard_scale(self: torch.amp.GradScaler, outputs: Any) -> Any:
        scaled = scale(self, outputs)
        if isinstance(outputs, Tensor) and scaled is not outputs:
            alive = [pair for pair in session.unscaled if pair[0]() is not None]
            session.unscaled = [*alive, (weakref.ref(scaled), outputs)]
        return scaled

    def heard_step(
        self: torch.amp.GradScaler, optimizer: Optimizer, *args: Any, **kwargs: Any
    ) -> Any:
        if self.is_enabled() and os.getpid() == session.home:
            session.heard.scale = self.get_scale()
            _first_step(session, module, optimizer, None)
        return step(self, optimizer, *args, **kwargs)

    scaler.scale, scaler.step = heard_scale, heard_step  # type: ignore[method-assign] # put back below
    try:
        yield
    finally:
        scaler.scale, scaler.step = scale, step  # type: ignore[method-assign] # as they were


@contextmanager
def _optimizers_heard(session: Session) -> Iterator[None]:
    """Note which optimizers are made in the block, without keeping them alive."""
    make = Optimizer.__init__

    def heard(self: Optimizer, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        session.heard.optimizers.append(weakref.ref(self))

    heard.__wrapped__ = make  # type: ignore[attr-defined] # as functools.wraps, for signatures
    Optimizer.__init__ = heard  # type: ignore[method-assign] # put back below
    try:
        yield
    finally:
        Optimizer.__init__ = make  # type: ignore[method-assign] # as it was


@contextmanager
def _silent_in_threads() -> Iterator[None]:
    """Keep the signal from being shown when it ends another thread, while in the block."""
    hook = threading.excepthook

    def shown(details: threading.ExceptHookArgs) -> None:
        if details.exc_type is not FirstStep:
            hook(details)

    threading.excepthook = shown
    try:
        yield
    finally:
        threading.excepthook = hook


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _exit_code(leaving: SystemExit) -> int:
    if leaving.code is None:
        return 0
    return leaving.code if isinstance(leaving.code, int) else 1


def _leave(code: int) -> None:
    """End the process at once: the script would catch anything else."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
