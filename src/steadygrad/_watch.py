"""The verb `watch`: take down what a training does, and say what is wrong with it."""

from __future__ import annotations

import os
import sys
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import distributed as dist
from torch import nn
from torch.optim import Optimizer

from steadygrad._replay import Cause, Causes, Kept, captured_of, is_disguised
from steadygrad.core.decimation import Memory
from steadygrad.core.environment import versions
from steadygrad.core.finding import Finding, as_json, from_json
from steadygrad.core.record import Record
from steadygrad.core.report import Blind, Report, diagnose
from steadygrad.core.steps import METRICS, Row, is_sampled, record_of_rows
from steadygrad.core.store import Writer, create
from steadygrad.core.stored import Stored, record_of
from steadygrad.detectors import DETECTORS, WATCHING
from steadygrad.guards.refusals import unwrapped as unwrapped_optimizer
from steadygrad.replay.captured import Captured
from steadygrad.replay.incident import incident_of
from steadygrad.replay.owners import Named, modules_in, variables
from steadygrad.sinks.feed import Feed
from steadygrad.sinks.sink import Sink
from steadygrad.taps.compiled import has_compiled, is_compiled
from steadygrad.taps.facts import facts_of
from steadygrad.taps.listener import listening
from steadygrad.taps.models import broken_in, filters_nan, trained_by
from steadygrad.taps.recorder import recording
from steadygrad.taps.watcher import Told, Trouble, Watcher

RETOLD = 20.0  # seconds after which what is known besides the steps is written anew
RING = 128  # steps of an incident that stand before it
JUMPS = 10  # incidents of a run that are no more than a jump of the gradient
Say = Callable[[str], None]


def watch(
    model: nn.Module | Sequence[nn.Module] | None = None,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    *,
    run: str | Path | None = None,
    overhead: float = 0.01,
    name: str = "",
    to: Sink | Sequence[Sink] = (),
) -> Watch:
    """Watch a training from here on; the loop stays as it is, and so do its numbers, bit by bit.

    Args:
        model: The model, or several; without it, what the optimizers train is looked for.
        optimizer: The optimizer, or several; without it, all that step are watched.
        run: The directory to write to, which `steadygrad top` tails; None keeps it in memory.
        overhead: Share of the time that samples of weights and activations may take.
        name: What reports call the run.
        to: Where to show the run while it goes on: `steadygrad.sinks.wandb.Wandb()` and its like.

    Raises:
        TypeError: for what is no model or no optimizer.
        ValueError: for an overhead that is not between 0 and 1.
    """
    models = _all_of("model", _many(model), nn.Module)
    optimizers = _all_of("optimizer", map(unwrapped_optimizer, _many(optimizer)), Optimizer)
    if not 0 < overhead <= 1:
        raise ValueError(f"watch(overhead=) expected a share of the time, 0 to 1, got {overhead}")
    first = is_first_rank()
    sinks = _sinks(to) if first else ()
    plan = Plan(run, overhead, name, writes=first and run is not None, to=sinks)
    return Watch(models, optimizers, plan)


def _sinks(to: Sink | Sequence[Sink]) -> Sequence[Sink]:
    return to if isinstance(to, Sequence) else (to,)


def is_first_rank() -> bool:
    """Whether this process is the one of a training that writes.

    Before the ranks have met, what launched them tells: torchrun RANK, Lightning LOCAL_RANK.
    """
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank() == 0
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"


@dataclass(frozen=True, slots=True)
class Plan:
    """How a training is watched.

    `say` is told what cannot wait for the report. `variables` are the script's own, by name.
    """

    directory: str | Path | None = None
    overhead: float = 0.01
    name: str = ""
    say: Say | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    writes: bool = False
    command: Sequence[str] = ()
    to: Sequence[Sink] = ()


def report_of(run: Stored) -> Report:
    """Say what was wrong with a run that was written to disk."""
    record = record_of(run)
    found = [one for one in map(from_json, record.facts.get("cause") or ()) if one is not None]
    cost = {k: v for k, v in (run.meta.get("cost") or {}).items() if isinstance(v, float)}
    target = str(run.meta.get("name", run.path.name))
    return said_of(record, target, cost, found)


def said_of(
    record: Record, target: str, cost: Mapping[str, float], found: Sequence[Finding]
) -> Report:
    """Run the detectors of many steps, if there are any steps."""
    if len(record.steps) or found:
        return diagnose(record, WATCHING, target=target, cost=cost, found=found, also=DETECTORS)
    why = "no optimizer has stepped"
    blind = dict.fromkeys(Blind(one.code, one.name, why) for one in WATCHING)
    return Report(target, record, (), blind=tuple(blind))


class Watch:
    """A training that is being watched. Also a context manager."""

    def __init__(
        self, models: Sequence[nn.Module], optimizers: Sequence[Optimizer], plan: Plan
    ) -> None:
        self.name = plan.name
        self._plan, self._say = plan, plan.say or _warned
        self._models = {f"model{n + 1 if n else ''}": one for n, one in enumerate(models)}
        self._memory = Memory()
        self._writer = (
            create(plan.directory, plan.name or "run", self._say) if plan.writes else None
        )
        if self._writer is not None:
            self._writer.meta({"versions": versions()})
        self._feeds = [Feed(one, plan.name, self._say) for one in plan.to]
        self._known = -1  # sites that the writer has been told of
        self._told = 0.0  # when, in seconds
        self._causes = Causes(self._say)
        self._jumps: list[int] = []
        self._closed = False
        self.ended = ""
        told = Told(self._find, self._sight, self._keep, self._trouble, self._jumped, self._failed)
        self._watcher = Watcher(told, overhead=plan.overhead, only=optimizers)
        if is_compiled(models) or (not models and has_compiled()):
            self._watcher.leave_alone()
        self._stack = ExitStack()
        self._stack.enter_context(listening(self._watcher))
        if not self._watcher.recorder.stopped:
            self._stack.enter_context(recording(self._watcher.recorder))
        os.register_at_fork(after_in_child=partial(_leave_alone, weakref.ref(self)))

    # --- What the user asks -------------------------------------------------------------------

    @property
    def path(self) -> Path | None:
        """The directory that the run is written to."""
        return None if self._writer is None else self._writer.path

    @property
    def is_closed(self) -> bool:
        """Whether it is over."""
        return self._closed

    @property
    def record(self) -> Record:
        """Everything read so far."""
        rows = self.rows
        facts = {**self._facts(rows), "buffers": self._buffers()}
        return record_of_rows(self._watcher.catalogue.sites, rows, facts)

    @property
    def rows(self) -> list[Row]:
        """The steps so far, the one that is being made among them."""
        last = self._watcher.peek()
        return [*self._memory.rows, *([] if last is None else [last])]

    @property
    def causes(self) -> list[Finding]:
        """What made numbers NaN or infinite, as replays have found it."""
        return self._causes.findings

    def report(self) -> Report:
        """Say what is wrong with the training so far; at any time, also after an exception."""
        return said_of(self.record, self.name, self._cost(), self.causes)

    @property
    def models(self) -> dict[str, nn.Module]:
        """The models that are being trained, by name."""
        return self._watcher.models

    def captured(self, optimizer: Optimizer) -> Captured:
        """What an optimizer that is about to step trains, with its loss; raises CannotLook."""
        with self._muted():
            return captured_of(self._kept(), optimizer, self._visible())

    def close(self) -> None:
        """Stop watching, and leave torch as it was found."""
        if self._closed:
            return
        self._closed = True
        self._stack.close()
        self._watcher.close()
        self._watcher.active = False
        if self._writer is not None:
            self._tell(self._writer)
            self._writer.close()
        last = cache(lambda: self.report().findings)
        for feed in self._feeds:
            feed.close(last)

    def abandon(self) -> None:
        """Leave torch as it was found, and everything else to the process that began it."""
        self._watcher.active, self._closed = False, True
        self._stack.close()

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self.ended = f"{type(error).__name__}: {error}".strip(": ")
            self.explain(error)
        self.close()

    def __repr__(self) -> str:
        return f"Watch({self.name or 'a training'}; {self._watcher.step + 1} steps)"

    # --- What the watcher tells ---------------------------------------------------------------

    def _keep(self, row: Row) -> None:
        self._memory.add(row)
        if self._writer is not None:
            late = time.perf_counter() - self._told > RETOLD
            if late or len(self._watcher.catalogue.sites) != self._known:
                self._tell(self._writer)
            self._writer.add(row)
        if is_sampled(row) or row.step in self._jumps:
            for feed in self._feeds:
                feed.row(row, tuple(self._watcher.catalogue.sites))

    def _tell(self, writer: Writer) -> None:
        """Write down what is known of the run besides its steps."""
        sites = self._watcher.catalogue.sites
        self._known, self._told = len(sites), time.perf_counter()
        facts = self._facts(self._memory.rows)
        if self._closed:
            facts["buffers"] = self._buffers()
        known: dict[str, Any] = {"facts": facts, "cost": self._cost()}
        if self._plan.command:
            known["command"] = list(self._plan.command)
        writer.meta(known, sites)

    def _facts(self, rows: Sequence[Row]) -> dict[str, Any]:
        facts = facts_of(self._watcher, rows)
        facts["run"]["ended"] = self.ended
        if self.causes:
            facts["cause"] = [as_json(one) for one in self.causes]
        return facts

    def _buffers(self) -> list[dict[str, Any]]:
        """Buffers that are broken now, or were when a model was last seen; waits for the device."""
        models = self._watcher.models
        return broken_in(models) if models else self._watcher.about.buffers

    def _find(self, optimizer: Optimizer) -> Mapping[str, nn.Module]:
        """The models that hold what an optimizer trains, by the names that they are to have."""
        if self._models:
            names = list(self._models) if len(self._models) > 1 else [""]
            return dict(zip(names, self._models.values(), strict=True))
        latest = self._watcher.recorder.tape.latest
        called = None if latest is None else latest.module
        return trained_by(optimizer, self._visible(), called, more=bool(self._watcher.models))

    def _sight(self) -> list[tuple[str, nn.Module]]:
        return modules_in(self._visible())

    def _visible(self) -> Named:
        frame: FrameType | None = sys._getframe(1)
        return [*variables(frame, self._plan.variables), *self._models.items()]

    def _trouble(self, trouble: Trouble) -> None:
        """Look for the first cause of a number that is not finite."""
        about = self._watcher.about
        visible = self._visible()
        about.filters = about.filters or filters_nan(visible)
        with self._muted():
            cause = self._causes.of(trouble, self._kept(), visible)
        if cause is None:
            return
        for feed in self._feeds:
            feed.findings(cause.findings)
        if self._writer is not None:
            self._write_down(self._writer, trouble, cause)

    def _kept(self) -> Kept:
        recorder = self._watcher.recorder
        why = recorder.stopped or (str(recorder.tape.fault) if recorder.tape.fault else "")
        return Kept(recorder.tape, self._watcher.losses.roots, why)

    @contextmanager
    def _muted(self) -> Iterator[None]:
        """Hear nothing of what we ourselves compute."""
        self._watcher.muted = True
        try:
            with self._watcher.recorder.asleep():
                yield
        finally:
            self._watcher.muted = False

    def _write_down(self, writer: Writer, trouble: Trouble, cause: Cause) -> None:
        for one in cause.findings:
            writer.event({"step": trouble.step, "kind": "finding", **as_json(one)})
        if not cause.findings:
            event = {"step": trouble.step, "kind": "nonfinite", "says": cause.why}
            writer.event({**event, "where": list(trouble.names)})
        self._leave(writer, trouble.step, cause)
        self._tell(writer)

    def _jumped(self, step: int, norm: float) -> None:
        """Leave the steps before a jump of the gradient behind, unless it is one of many."""
        early = bool(self._jumps) and step - self._jumps[-1] < RING
        if early or len(self._jumps) >= JUMPS:
            return
        self._jumps.append(step)
        self._watcher.schedule.burst(step + 1)
        if self._writer is not None:
            self._writer.event({"step": step, "kind": "jump", "norm": norm})
            self._leave(self._writer, step)

    def explain(self, error: BaseException) -> None:
        """Look for the first cause of an exception that may be a NaN in disguise."""
        recorder, step = self._watcher.recorder, self._watcher.step + 1
        if self._causes.named_by(error, step) or recorder.stopped or not is_disguised(error):
            return
        with self._muted():
            self._causes.of_exception(recorder.tape, step)

    def _leave(self, writer: Writer, step: int, cause: Cause | None = None) -> None:
        """Leave behind what is needed to look into a step again: the steps before it, its batch."""
        directory = writer.incident(step)
        if directory is None:
            return
        writer.save(directory / "ring.npz", ring_of(self.rows[-RING:]))
        if cause is not None and cause.captured is not None:
            kept = incident_of(cause.captured)
            writer.do(lambda: kept.save(directory))

    def _failed(self, error: Exception) -> None:
        if os.environ.get("STEADYGRAD_DEBUG"):
            import traceback

            traceback.print_exception(error)
        self._say(f"the watching ended, by a fault of ours: {type(error).__name__}: {error}")

    def _cost(self) -> dict[str, float]:
        elapsed = self._watcher.elapsed - self._causes.seconds
        steps = float(self._watcher.step + 1)
        overhead = self._watcher.own / max(elapsed, 1e-9)
        return {"seconds": elapsed, "overhead": overhead, "steps": steps}


def ring_of(rows: Sequence[Row]) -> dict[str, NDArray[Any]]:
    """Some steps as arrays: `step` [steps], and each metric [steps, sites of its role]."""
    arrays: dict[str, NDArray[Any]] = {"step": np.array([row.step for row in rows])}
    for metric in METRICS:
        read = [row.read.get(metric, np.zeros(0, np.float32)) for row in rows]
        width = max((len(one) for one in read), default=0)
        if width:
            arrays[metric] = np.full((len(rows), width), np.nan, np.float32)
            for line, one in zip(arrays[metric], read, strict=True):
                line[: len(one)] = one
    return arrays


def _leave_alone(watch: weakref.ref[Watch]) -> None:
    """Watch nothing in a forked child: a worker of a DataLoader is not the training."""
    alive = watch()
    if alive is not None:
        alive.abandon()


def _warned(sentence: str) -> None:
    warnings.warn(f"steadygrad: {sentence}", RuntimeWarning, stacklevel=2)


def _many(given: object) -> tuple[object, ...]:
    """What was given, one, several, or None, as several."""
    some = () if given is None else given
    return tuple(some) if isinstance(some, (list, tuple)) else (some,)


def _all_of(what: str, given: Iterable[object], kind: type) -> tuple[Any, ...]:
    """What was given; raises TypeError for what is something else."""
    many = tuple(given)
    wrong = next((one for one in many if not isinstance(one, kind)), None)
    if wrong is not None:
        raise TypeError(
            f"watch({what}=) expected a torch {kind.__name__} or several, "
            f"got {type(wrong).__name__}"
        )
    return many
