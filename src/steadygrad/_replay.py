"""The first cause of a number that is not finite: the step is computed again, and looked at."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from steadygrad._check import check
from steadygrad.core.finding import Finding, Severity
from steadygrad.core.record import record_of
from steadygrad.core.report import Report, diagnose
from steadygrad.detectors import DETECTORS
from steadygrad.probe.dynamo import eager
from steadygrad.probe.nonfinite import before_exception
from steadygrad.replay.assemble import Heard, assemble
from steadygrad.replay.captured import CannotLook, Captured
from steadygrad.replay.owners import Named
from steadygrad.replay.randomness import kept as kept_generators
from steadygrad.replay.randomness import set_generators
from steadygrad.replay.score import Term, reached
from steadygrad.replay.tape import Tape

NUMBERS = ("G001", "G002", "G003", "G004", "G005", "G006", "G007", "G009")
"""Codes of what makes a number NaN or infinite; so does the whole family of data and loss."""

LATER = tuple(one for one in DETECTORS if not one.code.startswith("G2"))
"""What may be said of a step after the first: its weights are no longer those of the start."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept of a step by reference: the tape of its loss, and where backward started."""

    tape: Tape
    roots: Sequence[tuple[Tensor, Tensor | None]]
    scale: float | None = None
    clipped: bool = False


@dataclass(frozen=True, slots=True)
class Cause:
    """What a replay has found: findings, roots first, or why there are none."""

    findings: tuple[Finding, ...]
    why: str = ""
    captured: Captured | None = None


def first_cause(kept: Kept, optimizer: Optimizer, visible: Named, step: int) -> Cause:
    """Compute the loss of a step again, as it was, and name the op that broke it.

    Model, optimizer, buffers, and generators are as they were afterwards. Nothing is trained.
    """
    cause = Cause((), "no backward pass was heard")
    for heard in _passes(kept):
        try:
            with _buffers_put_back(_buffers_in(kept, visible)), torch.enable_grad():
                cause = looked(assemble(heard, optimizer, visible), step)
        except CannotLook as error:
            cause = Cause((), str(error))
        if cause.findings:
            break
    return cause


MOST_PASSES = 16  # of one step that are looked into: chosen by us
DISGUISES = (
    "probability tensor contains either `inf`, `nan`",
    "to satisfy the constraint",
    "invalid numeric entries",
    "contained non-finite values",
    "contains NaN",
    "contains infinity",
    "contains inf or NaN",
    "should be between 0 and 1",
    "underflow in dt",
    "invalid values",
    "cannot convert float NaN to integer",
    "cannot convert float infinity to integer",
)
"""What libraries raise when they meet a number that is not finite."""


def is_disguised(error: BaseException) -> bool:
    """Whether an exception may be a NaN in disguise."""
    return any(words.lower() in str(error).lower() for words in DISGUISES)


def cause_of_exception(tape: Tape, step: int) -> Cause:
    """Run the model's last call again, up to where it raised, and name what broke before."""
    entry = tape.running or tape.latest
    if entry is None or entry.module is None:
        return Cause((), "no call of a model was noted")
    model, run = entry.module, entry.run

    def again() -> object:
        set_generators(entry.rng)
        return run(*entry.args, **entry.kwargs)

    with eager(), torch.enable_grad(), kept_generators(), _buffers_put_back(model.buffers()):
        facts = before_exception(model, again, entry.given())
    report = diagnose(record_of([], {"nonfinite": facts, "step": step}), DETECTORS)
    found = tuple(replace(one, steps=(step, step)) for one in _of_numbers(report))
    return Cause(found, "" if found else "everything was finite until it was raised")


def _passes(kept: Kept) -> Iterator[Heard]:
    """Each backward pass alone, those that started on a broken loss first.

    The step of an accumulation has many, and one of them is to blame.
    """
    known = [(_value(*root), *root) for root in kept.roots[:MOST_PASSES]]
    known.sort(key=lambda row: math.isfinite(row[0]))
    for value, loss, weight in known:
        heard = Heard(kept.tape, scale=kept.scale, clipped=kept.clipped, goes_on=True)
        made = kept.tape.made(loss)
        if made is None:
            heard.unseen.append("backward() started on a tensor made out of sight")
        else:
            heard.passes.append([Term(made, weight, value, reached(loss))])
        yield heard


@torch.no_grad()
def _value(loss: Tensor, weight: Tensor | None) -> float:
    return float((loss if weight is None else loss * weight).sum())


def looked(captured: Captured, step: int) -> Cause:
    """Look at a captured step for what breaks its numbers."""
    facts = {**captured.facts, "step": step}
    if captured.blind:
        facts["blind"] = dict(captured.blind)
    try:
        report = check(
            captured.model,
            captured.inputs,
            loss=captured.loss,
            optimizer=captured.optimizer,
            probes=False,
            facts=facts,
        )
    except (TypeError, ValueError, RuntimeError) as error:
        return Cause((), f"the step could not be computed again: {error}", captured)
    if step > 0 and report.record.facts:
        report = diagnose(report.record, LATER)
    found = tuple(replace(one, steps=(step, step)) for one in _of_numbers(report))
    why = "" if found else captured.blind.get("loss", "computed again, everything is finite")
    return Cause(found, why, captured)


def _of_numbers(report: Report) -> Iterator[Finding]:
    """Roots that break numbers, or explain what does."""
    for one in report.findings:
        breaks = one.code in NUMBERS or one.code.startswith("G6")
        if one.severity > Severity.note and (breaks or {*NUMBERS} & {*one.symptoms}):
            yield one


def _buffers_in(kept: Kept, visible: Named) -> Iterator[Tensor]:
    """Buffers of every model that may be run again."""
    models = [one for _, one in visible if issubclass(type(one), nn.Module)]
    latest = kept.tape.latest
    if latest is not None and latest.module is not None:
        models.append(latest.module)
    return (buffer for model in models for buffer in model.buffers())


@contextmanager
def _buffers_put_back(buffers: Iterable[Tensor]) -> Iterator[None]:
    """Put back what running a model again does to its buffers."""
    known = {id(buffer): buffer for buffer in buffers}
    before = [(buffer, buffer.detach().clone()) for buffer in known.values()]
    try:
        yield
    finally:
        for buffer, value in before:  # by `data`: a graph of the user's must not see a new version
            buffer.data.copy_(value)
