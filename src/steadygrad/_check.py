"""The verb `check`: look at a network before a single weight moves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.optim import Optimizer
from torch.utils.checkpoint import CheckpointFunction

from steadygrad.core.record import Facts, record_of
from steadygrad.core.report import Report, diagnose
from steadygrad.detectors import DETECTORS
from steadygrad.detectors.data import explain_exception
from steadygrad.probe.data import data
from steadygrad.probe.dropped import dropped
from steadygrad.probe.dynamo import eager
from steadygrad.probe.flow import flow
from steadygrad.probe.graph import reachable
from steadygrad.probe.loss import loss as loss_end
from steadygrad.probe.nonfinite import first_nonfinite
from steadygrad.probe.opened import opened, zero_by_design
from steadygrad.probe.pairs import pairs
from steadygrad.probe.samples import samples
from steadygrad.probe.sandbox import sandbox
from steadygrad.probe.spy import Spy
from steadygrad.probe.subject import Probe, Readings, Subject, replayed, rng_states
from steadygrad.probe.through_time import through_time
from steadygrad.probe.trace import Trace, listen
from steadygrad.probe.tree import Tree, is_signal, tensors
from steadygrad.probe.update import update
from steadygrad.probe.values import values
from steadygrad.probe.wiring import wiring
from steadygrad.probe.wrappers import unwrapped

PROBES: tuple[Probe, ...] = (
    first_nonfinite,
    wiring,
    values,
    dropped,
    data,
    samples,
    loss_end,
    pairs,
)
"""Probes of the first pass. `flow` comes before, on a pass of its own where zeros hide."""

OPTIONAL: tuple[Probe, ...] = (through_time, update)
"""Probes that run the model again, a few times: time, update, sharpness."""


NO_LOSS = "no loss was given"  # what probes say; a launcher may know more


@dataclass(frozen=True, slots=True)
class Setup:
    """What is to be looked at: how a model is run and, where known, its loss and optimizer."""

    forward: Callable[[nn.Module], Tree]
    loss: Callable[[nn.Module], Tensor] | None
    optimizer: Optimizer | None
    seed: int


def check(  # noqa: PLR0913 - the public verb: all but two go by keyword
    model: nn.Module,
    inputs: Tree = None,
    *,
    loss: Callable[[nn.Module], Tensor] | None = None,
    optimizer: Optimizer | None = None,
    target: str = "",
    seed: int = 0,
    probes: bool = True,
    facts: Facts | None = None,
) -> Report:
    """Say what will go wrong in this network, where, and why, before a single weight moves.

    Give `inputs` (a tensor, a tuple of positional or a mapping of keyword arguments) or a `loss`
    that takes the model and returns a scalar. With a loss more is seen; with an optimizer, more
    still. The model is copied and looked at in training mode; nothing of it is changed, also when
    its forward pass raises: that exception is the caller's, unless it names a finding (a label out
    of range). `probes=False` leaves out what runs the
    model more than once. `facts` are merged into the record.

    Raises TypeError or ValueError when the model cannot be run with what was given.
    """
    _expect(model, inputs, loss)
    begin = time.perf_counter()
    bare = unwrapped(model)
    setup = Setup(loss or (lambda m: call(m, inputs)), loss, optimizer, seed)
    with ExitStack() as stack:
        stack.enter_context(eager())
        stack.enter_context(uncheckpointed())
        stack.enter_context(torch.inference_mode(False))
        copied, copied_optimizer = stack.enter_context(sandbox(bare, optimizer))
        stack.enter_context(_modes(copied, train="script" not in (facts or {})))
        stack.enter_context(torch.enable_grad())
        setup = Setup(setup.forward, loss, copied_optimizer, seed)
        try:
            readings, step = _look(copied, setup, probes)
        except Exception as error:
            report = explained(error, target or type(bare).__name__)
            if report is None:
                raise
            return report
    seconds = time.perf_counter() - begin
    known = {"optimizer": type(optimizer).__name__} if optimizer is not None else {}
    merged = _merge(readings, {**known, **(facts or {})})
    record = record_of([row for one in readings for row in one.rows], merged)
    cost = {"seconds": seconds, "relative_to_step": seconds / step if step else float("nan")}
    return diagnose(record, DETECTORS, target=target or type(bare).__name__, cost=cost)


def explained(error: BaseException, target: str) -> Report | None:
    """Report on an exception of the user's code that names its own cause; None for all others."""
    found = explain_exception(error)
    return None if found is None else Report(target, record_of([]), (found,))


def _look(model: nn.Module, setup: Setup, probes: bool) -> tuple[list[Readings], float]:
    rng = rng_states()
    begin = time.perf_counter()
    subject = trace(model, setup, rng)
    step = 3 * (time.perf_counter() - begin)  # a backward pass costs about two forward passes
    roots = [t for t in (subject.loss_value, *subject.outputs[:1]) if t is not None]
    zero = zero_by_design(model, roots)
    with opened(zero):
        ids = frozenset(id(one) for one in zero.values())
        seen = flow(replace(trace(model, setup, rng), opened=ids) if zero else subject)
    seen.facts["zero_by_design"] = sorted(zero)
    chosen = (*PROBES, *OPTIONAL) if probes else PROBES
    return [seen, *(probe(subject) for probe in chosen)], step


def trace(model: nn.Module, setup: Setup, rng: list[Tensor]) -> Subject:
    """Run the forward pass once under a Trace and gather what the probes need."""
    spy = Spy()
    with replayed(rng), listen(model, spy) as heard:
        result = setup.forward(model)
    loss_value = _scalar(result) if setup.loss is not None else None
    if loss_value is not None and not heard.calls and not _reaches(loss_value, model):
        raise ValueError(
            "expected loss to run the model that it is given, as in "
            "loss=lambda m: loss_fn(m(x), y), got one that runs no part of it"
        )
    if loss_value is None and next(tensors(result), None) is None:
        raise ValueError(
            "expected the model to return tensors or containers of them, "
            f"got {type(result).__name__}: give a loss as well"
        )
    outputs = _outputs(heard, result)
    return Subject(
        model,
        setup.forward,
        setup.loss,
        setup.optimizer,
        heard,
        outputs,
        loss_value,
        rng,
        spy.heard,
        setup.seed,
    )


def _reaches(loss: Tensor, model: nn.Module) -> bool:
    """Whether a gradient of the loss leads to a parameter of the model."""
    held = {id(parameter) for parameter in model.parameters()}
    below = reachable(loss.grad_fn) if loss.grad_fn is not None else []
    return any(id(getattr(node, "variable", None)) in held for node in below)


def _scalar(result: Tree) -> Tensor:
    if not isinstance(result, Tensor) or result.numel() != 1:
        shape = list(result.shape) if isinstance(result, Tensor) else type(result).__name__
        raise TypeError(f"expected loss(model) to return one number as a tensor, got {shape}")
    return result


def _outputs(heard: Trace, result: Tree) -> list[Tensor]:
    """Outputs with a graph of the last outermost call; those with samples stand first."""
    for tree in (*heard.results[::-1], result):
        known = [t for t in tensors(tree) if t.grad_fn is not None]
        found = [t for t in known if is_signal(t) or t.is_complex()]
        if found:
            return sorted(found, key=lambda t: t.numel() <= 1)
    return []


def call(model: nn.Module, inputs: Tree) -> Tree:
    """Call a model with a tensor, a tuple of positional, or a mapping of keyword arguments."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, (tuple, list)) and not isinstance(inputs, PackedSequence):
        return model(*inputs)
    return model(inputs)


@contextmanager
def uncheckpointed() -> Iterator[None]:
    """Run reentrant checkpoints as plain calls inside the block: they hide ops and refuse `grad`.

    `apply` is inherited, so that taking ours away brings torch's back.
    """
    CheckpointFunction.apply = staticmethod(_plain_call)  # type: ignore[method-assign] # on purpose
    try:
        yield
    finally:
        del CheckpointFunction.apply


def _plain_call(run: Callable[..., Tree], _preserve: bool, *args: Tree) -> Tree:
    return run(*args)


@contextmanager
def _modes(model: nn.Module, *, train: bool) -> Iterator[None]:
    """Put back all modes afterwards; train a model handed over in evaluation mode inside the block.

    A mixed model (frozen batch norms) keeps its modes, as does one that a script has run already.
    """
    modes = [(one, one.training) for one in model.modules()]
    if train and not model.training:
        model.train()
    try:
        yield
    finally:
        for one, mode in modes:
            one.training = mode


def _merge(readings: Sequence[Readings], facts: Facts | None) -> dict[str, Any]:
    merged: dict[str, Any] = {}  # JSON-like, see core.record.Facts
    blind: dict[str, str] = {}
    for one in readings:
        merged.update(one.facts)
        blind.update(one.blind)
    merged.update(facts or {})
    given = merged.get("blind", {})
    lost = given.get("loss", NO_LOSS)
    merged["blind"] = {n: lost if why == NO_LOSS else why for n, why in blind.items()} | given
    return merged


def _expect(model: object, inputs: Tree, loss: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module to check, got {type(model).__name__}")
    if loss is not None and not callable(loss):
        raise TypeError(
            "expected loss to be a function of the model, as in loss=lambda m: loss_fn(m(x), y), "
            f"got {type(loss).__name__}"
        )
    if any(isinstance(one, torch.jit.ScriptModule) for one in model.modules()):
        raise TypeError(
            "expected a model written in Python, got TorchScript, which takes no hooks: check the "
            "model that it was scripted from"
        )
    if loss is None and inputs is None:
        raise ValueError("expected inputs or a loss to run the model with, got neither")
    _expect_one_device(model, inputs)


def _expect_one_device(model: nn.Module, inputs: Tree) -> None:
    homes = {t.device.type for t in model.parameters()}
    given = {t.device.type for t in tensors(inputs)}
    if homes and given and not given & homes:
        raise ValueError(
            f"expected inputs on {', '.join(sorted(homes))} like the model, "
            f"got {', '.join(sorted(given))}: move one of them"
        )
    if "meta" in homes:
        raise ValueError(
            "expected a model that holds values, got one on the meta device: build it on a real one"
        )
