"""Watches a training: at every optimizer step it takes down what was read since the last.

A Watcher is a Listener: what it hears it turns into Readings. It raises nothing into the user's
loop: a fault of ours is told once, and the watching ends.
"""

from __future__ import annotations

import functools
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from steadygrad.core.record import Site
from steadygrad.core.steps import Row
from steadygrad.guards.nesting import is_nested
from steadygrad.guards.norms import Reader
from steadygrad.guards.number import Number, Truth
from steadygrad.probe.trace import users_line
from steadygrad.probe.wrappers import unwrapped
from steadygrad.taps.catalogue import Catalogue, Names, names_in
from steadygrad.taps.clips import Clips
from steadygrad.taps.compiled import is_compiled
from steadygrad.taps.constant import LossCall
from steadygrad.taps.held import Held, guard_of, held, key_of
from steadygrad.taps.leaves import leaves
from steadygrad.taps.listener import Arguments
from steadygrad.taps.losses import Losses
from steadygrad.taps.models import broken_in
from steadygrad.taps.number import number_of
from steadygrad.taps.outputs import Outputs
from steadygrad.taps.ranks import Ranks
from steadygrad.taps.recorder import Recorder
from steadygrad.taps.rounds import Reading, Rounds, Step
from steadygrad.taps.schedule import Schedule
from steadygrad.taps.targets import Targets
from steadygrad.taps.weights import Sample, sample, sizes_of

READ = 1000  # times the norm is a threshold that is there to read it: chosen by us
LEARNING = 10  # steps after which it is known which parameters get gradients
MANY_EVALUATIONS = ("LBFGS",)
Find = Callable[[Optimizer], Mapping[str, nn.Module]]
"""Names the models that hold an optimizer's parameters."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """A step whose loss or gradient is not finite, before anything has come of it.

    `names` are the parameters whose gradient is broken, `scaled` says that the loss was scaled.
    """

    step: int
    optimizer: Optimizer
    loss: float
    norm: float
    names: tuple[str, ...]
    scaled: bool = False


@dataclass(frozen=True, slots=True)
class Told:
    """Who is asked for models, and told of rows, trouble, jumps of the norm, faults of ours."""

    find: Find
    sight: Callable[[], Sequence[tuple[str, nn.Module]]]
    keep: Callable[[Row], None]
    trouble: Callable[[Trouble], None]
    jumped: Callable[[int, float], None]
    failed: Callable[[Exception], None]


@dataclass(slots=True)
class Circumstances:
    """What is known of a run besides its numbers.

    `filters` says that a host leaves broken losses out of its log, `broken` that there was one.
    `loose` are parameters that a loss reaches and no model is known to hold, by id: whether some
    module in sight does, and the shape. `frozen` are parameters that want no gradient, `outside`
    those that get one and no optimizer's. `hooks` are those of modules when they were first
    trained, `blind` says why a metric is not read.
    """

    compiled: bool = False
    filters: bool = False
    broken: bool = False
    loss_call: LossCall | None = None
    scaler: dict[str, float] | None = None
    hooks: dict[str, frozenset[int]] = field(default_factory=dict)
    parameters: int = 0
    frozen: dict[str, bool] = field(default_factory=dict)  # a set in order
    outside: dict[str, bool] = field(default_factory=dict)  # likewise
    loose: dict[int, tuple[bool, list[int]]] = field(default_factory=dict)
    buffers: list[dict[str, Any]] = field(default_factory=list)  # broken ones, as facts
    blind: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Pending:
    """A step that has begun: what was read of it so far."""

    held: Held
    step: int
    present: np.ndarray[tuple[int], np.dtype[np.bool_]]
    norms: Tensor | None = None
    total: Number = math.nan
    after: Number = math.nan
    max_norm: Number = math.inf
    skipped: Truth = False
    scale: Number = 1.0
    sample: Sample | None = None
    extra: list[Reading] = field(default_factory=list)
    whole: bool = True  # every parameter has a gradient


def careful(method: Callable[..., Any]) -> Callable[..., Any]:  # the same; None after a fault
    """Do our part of the user's loop: on the clock, only at home, and without ever raising."""

    @functools.wraps(method)
    def carefully(self: Watcher, *args: Any, **kwargs: Any) -> Any:
        if not self.active or self.muted or self.home != (os.getpid(), threading.get_ident()):
            return None
        begin = time.perf_counter()
        slept = self.recorder.nap()
        try:
            return method(self, *args, **kwargs)
        except Exception as error:  # a fault of ours must not stop the user's training
            self.fail(error)
            return None
        finally:
            if slept:
                self.recorder.wake()
            self.spent += time.perf_counter() - begin

    return carefully


class Watcher:
    """What is known of a training while it runs."""

    def __init__(self, told: Told, *, overhead: float, only: Sequence[Optimizer] = ()) -> None:
        self.recorder = Recorder()
        self.catalogue, self.about, self.ranks = Catalogue(), Circumstances(), Ranks()
        self.losses, self.clips, self.targets = Losses(), Clips(), Targets()
        self.schedule = Schedule(overhead)
        self.held: dict[int, Held] = {}
        self.retired: list[Held] = []  # of optimizers that are gone, or have other parameters now
        self._models: dict[str, weakref.ref[nn.Module]] = {}
        self.spent = 0.0  # seconds that were ours
        self.active, self.muted = True, False
        self.home = (os.getpid(), threading.get_ident())
        self.step = -1
        self._told, self._only = told, only
        self._names = Names({}, {}, {}, {})
        self._outputs: Outputs | None = None
        self._rounds = Rounds(told.keep, self.catalogue.count)
        self._stepped: set[int] = set()  # places of the optimizers that have, in this round
        self._since: set[int] = set()  # ids of those that have since the last backward pass
        self._plain_kinds: dict[type, bool] = {}
        self._pending: dict[int, Pending] = {}
        self._awaited: tuple[torch.amp.GradScaler, Optimizer] | None = None
        self._begin = self._last = time.perf_counter()
        self._first = math.nan  # when the first backward pass began
        self._own = 0.0  # seconds that were ours when the last round began

    @property
    def models(self) -> dict[str, nn.Module]:
        """The models that are being trained, as far as they are still there."""
        alive = {name: ref() for name, ref in self._models.items()}
        return {name: one for name, one in alive.items() if one is not None}

    @property
    def own(self) -> float:
        """Seconds that were ours, but for what the user's own clipping needed anyway."""
        return self.spent + self.recorder.tape.spent - self.clips.seconds

    # --- What is heard ---------------------------------------------------------------------------

    @careful
    def backward_begins(self, roots: Sequence[Tensor], weights: Sequence[Tensor | None]) -> None:
        """Add up the loss, and ask for stale gradients."""
        self._first = time.perf_counter() if math.isnan(self._first) else self._first
        self.clips.forget()
        self.losses.add(roots, weights)
        for loss, _ in self.losses.roots[-len(roots) :]:
            self.targets.note(self.recorder.tape, loss)
        self._since = set()
        for one in self.held.values():
            one.stale.backward_begins()
        self.recorder.pause()

    def backward_ended(self) -> None:
        """Let the tape run again."""
        self.recorder.resume()
        if any(one.stale.suspected for one in self.held.values()):
            self._note_gradients()

    @careful
    def _note_gradients(self) -> None:
        for one in self.held.values():
            one.stale.backward_ended()

    @careful
    def gradients_measured(self, gradients: Sequence[Tensor]) -> Tensor | None:
        """Take the norms of single gradients from the clipping, which is about to need them."""
        with torch.no_grad():
            for one in self.held.values():
                if one.reader.groups:  # all ranks are here, as they clip together
                    every = one.gradients()
                    mine = [grad for grad in every if grad is not None]
                    self.clips.keep(mine, one.reader.norms(settle=False)[one.present(every)])
            if any(one.reader.groups for one in self.held.values()):
                return None
            return self.clips.measure(gradients, scaled=self.losses.scaled)

    @careful
    def gradients_clipped(self, max_norm: float) -> None:
        """Note the threshold, and whether the clipping comes at the right time."""
        self.clips.clip(max_norm)
        if not math.isinf(max_norm):
            self._note_order(max_norm)

    @careful
    def values_clipped(self, gradients: Sequence[Tensor]) -> None:
        """Note what clipping element by element has left of the norm, and when it came."""
        with torch.no_grad():
            self.clips.cut(gradients)
        self._note_order()

    def _note_order(self, max_norm: float = 0.0) -> None:
        """Note when a clipping came, unless it is there for the norm alone, which is far below."""
        norms = [float(one.total) for one in self.clips.measured]
        if 0 < READ * max(norms, default=0.0) <= max_norm:
            return
        order, late = self.clips.order, self._comes_late()
        empty = not any(norm > 0 for norm in norms)
        order.calls += 1
        order.after_step += late and not empty
        order.before_backward += late and empty
        order.before_unscale += self.losses.scaled
        if not order.line[1]:
            order.line = users_line()

    def _comes_late(self) -> bool:
        """Whether all optimizers whose gradients are being clipped have stepped already."""
        if not self._since:
            return False
        clipped = self.clips.measured[-1].gradients if self.clips.measured else []
        mine = {id(one) for one in clipped}
        touched = [p for p, one in self.held.items() if mine & {id(g) for g in one.gradients()}]
        return all(place in self._since for place in touched)

    @careful
    def loss_scaled(self, loss: Tensor, scaled: Tensor) -> None:
        """Remember what a loss was before it was scaled."""
        self.losses.note_scaling(loss, scaled)

    @careful
    def gradients_unscaled(self) -> None:
        """Gradients are the loss's own from now on."""
        self.losses.scaled = False

    @careful
    def scaler_steps(self, scaler: torch.amp.GradScaler, optimizer: Optimizer) -> None:
        """Wait for the step that a scaler may skip."""
        self._awaited = (scaler, optimizer)
        if self.about.scaler is None:
            interval = float(scaler.get_growth_interval())
            self.about.scaler = {
                "growth_interval": interval,
                "init_scale": float(scaler._init_scale),
            }

    @careful
    def scaler_stepped(self, optimizer: Optimizer) -> None:
        """Take down a step that the scaler has skipped."""
        if self._awaited is not None and self._is_mine(optimizer):
            self._look(optimizer, skipped=True)
            self._finish(optimizer)
        self._awaited = None

    @careful
    def compiled(self) -> None:
        """Leave compiled code alone: what stands in its way would be compiled with it."""
        self.leave_alone()

    def leave_alone(self) -> None:
        """Let the tape and the tap be, which would be compiled too; steps are read all the same."""
        self.about.compiled = True
        self.recorder.stop("a part is compiled: run it with TORCH_COMPILE_DISABLE=1 for that")

    @careful
    def step_begins(self, optimizer: Optimizer, arguments: Arguments) -> Arguments | None:
        """Read the gradients, once the closure has computed them where there is one."""
        if self._nests(optimizer) or not self._is_mine(optimizer):
            return None
        args, kwargs = arguments
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._look(optimizer)
            self.recorder.pause()
            return None
        if type(optimizer).__name__ in MANY_EVALUATIONS:
            self.about.blind["grad"] = (
                f"{type(optimizer).__name__} computes several gradients in a step"
            )
            self._look(optimizer, read=False)
            return None

        def looked() -> Any:  # whatever the user's closure returns
            loss = closure()
            self._look_late(optimizer)
            return loss

        if len(args) > 1:
            return (args[0], looked, *args[2:]), kwargs
        return args, {**kwargs, "closure": looked}

    @careful
    def _look_late(self, optimizer: Optimizer) -> None:
        self._look(optimizer)
        self.recorder.pause()

    def step_ended(self, optimizer: Optimizer) -> None:
        """Take down what the step has done."""
        if self.active and not self._nests(optimizer):
            self.recorder.resume()
            self._ended(optimizer)

    @careful
    def _ended(self, optimizer: Optimizer) -> None:
        self._finish(optimizer)

    # --- A step ----------------------------------------------------------------------------------

    @torch.no_grad()
    def _look(self, optimizer: Optimizer, *, skipped: bool = False, read: bool = True) -> None:
        one = self._held(optimizer)
        self._open_round(one)
        gradients = one.gradients()
        present = one.present(gradients)
        whole = present is one.all
        if one.steps == 1:
            self._note_loose()
        now = Pending(one, self.step, present, skipped=skipped, whole=whole)
        self._pending[one.place] = now
        scaler = self._awaited[0] if self._awaited is not None else None
        self._awaited = None
        if scaler is not None:
            now.scale = _scale_of(scaler)
        if self.schedule.due(self.step) and not skipped:
            now.sample = sample(one.parameters)
        if not read or guard_of(optimizer) is not None:
            return
        self._read_norms(now, gradients, _left_scale(optimizer))
        if (found := vars(optimizer).get("found_inf")) is not None:
            now.skipped = bool(found) if one.on_host else found.reshape(()) > 0
        if one.on_host:
            self._ask(now, optimizer)

    def _read_norms(self, now: Pending, gradients: Sequence[Tensor | None], given: Number) -> None:
        """Norms of the gradients, from the clipping where there was one."""
        measured = self.clips.of(gradients)
        if measured is None:
            now.norms = _divided(_norms(now.held.reader), given)
            now.total = now.after = number_of(torch.linalg.vector_norm(now.norms))
            return
        norms = measured.norms
        if not now.whole:
            norms = torch.zeros(len(gradients), dtype=torch.float64, device=norms.device)
            norms[torch.from_numpy(now.present)] = measured.norms
        now.norms, now.total, now.max_norm = norms, measured.total, measured.max_norm
        if measured.scaled:
            now.norms, now.total = norms / now.scale, now.total / now.scale
            now.max_norm = now.max_norm / now.scale
        now.after = now.total * measured.factor if measured.after is None else measured.after

    def _ask(self, now: Pending, optimizer: Optimizer) -> None:
        """Tell of a loss or a gradient that is not finite, while it can still be looked into."""
        loss, total = float(self.losses.total), float(now.total)
        if (math.isfinite(loss) and math.isfinite(total)) or now.norms is None:
            return
        if not self.about.broken:
            self.about.broken = True
            now.extra.append(Reading("weight", now.held.places, sizes_of(now.held.parameters)))
        broken = ~np.isfinite(now.norms.numpy()) & now.present
        names = tuple(s.name for s, bad in zip(now.held.sites, broken, strict=True) if bad)
        scaled = not isinstance(now.scale, float) or now.scale != 1.0
        trouble = Trouble(self.step, optimizer, loss, total, names, scaled=scaled)
        begin = time.perf_counter()
        self._told.trouble(trouble)
        self.spent -= time.perf_counter() - begin  # counted where it belongs

    def _finish(self, optimizer: Optimizer) -> None:
        """Send the readings of a step to their row, and prepare for the next."""
        one = self.held.get(id(optimizer))
        now = self._pending.pop(one.place, None) if one is not None else None
        if one is None or now is None:
            return
        self._ask_guard(now, optimizer)
        self._rounds.add(
            Step(
                now.step,
                time.perf_counter() - self._begin,
                one.place,
                self._scalars(now, optimizer),
                self._readings(now),
                late=not one.on_host,
            )
        )
        self._note_loss()
        if one.steps < LEARNING or now.sample is not None:
            self._note_presence(now)
        one.steps += 1
        one.stale.stepped()
        self.losses.used()
        self.clips.forget()
        self.recorder.tape.forget()
        self._since.add(id(optimizer))
        if one.on_host and now.norms is not None:
            self.ranks.tell(now.step, float(now.total), one.parameters)
            if one.jumps.is_one(float(now.total)):
                self._told.jumped(now.step, float(now.total))
        self._arm()

    def _note_loss(self) -> None:
        """Keep the call of a loss inside of a model, where there is one in each backward pass."""
        if self._outputs is not None and self._outputs.losses:
            calls, self._outputs.losses = self._outputs.losses, []
            self.about.loss_call = calls[-1] if len(calls) == self.losses.backwards else None

    def _ask_guard(self, now: Pending, optimizer: Optimizer) -> None:
        """Take over what a guard has read and done."""
        guard = guard_of(optimizer)
        if guard is None or guard.latest is None:
            return
        judged = guard.latest
        now.norms, now.total, now.after = judged.seen.norms, judged.seen.total, judged.now.total
        now.max_norm, now.skipped = judged.threshold, guard.skipped
        if now.held.on_host and bool(now.skipped):
            self._ask(now, optimizer)

    def _scalars(self, now: Pending, optimizer: Optimizer) -> list[Number | None]:
        """What is read of the step itself, in the order of OF_STEP."""
        lr = max(float(group.get("lr", math.nan)) for group in optimizer.param_groups)
        heard, read = self.losses.backwards > 0, now.norms is not None
        limited = isinstance(now.max_norm, Tensor) or not math.isinf(now.max_norm)
        skipped = now.skipped
        return [
            self.losses.total if heard else None,
            lr,
            now.total if read else None,
            now.after if read else None,
            now.max_norm if limited else None,
            now.scale,
            skipped.double() if isinstance(skipped, Tensor) else float(skipped),
            float(self.losses.backwards) if heard else None,
        ]

    def _readings(self, now: Pending) -> list[Reading]:
        readings = []
        if now.norms is not None and now.whole:
            readings.append(Reading("grad", now.held.places, now.norms))
        elif now.norms is not None:
            mine = torch.from_numpy(now.present).to(now.norms.device)
            readings.append(Reading("grad", now.held.places[now.present], now.norms[mine]))
        if now.sample is not None:
            with torch.no_grad():
                moves = now.sample.moves()
            readings += [Reading(m, now.held.places, numbers) for m, numbers in moves.items()]
        return [*readings, *now.extra, *self._of_outputs()]

    def _of_outputs(self) -> list[Reading]:
        if self._outputs is None or self.recorder.tap is None:
            return []
        found = self._outputs.take()
        return [
            Reading(
                metric,
                np.array([place for place, _ in pairs], dtype=np.int64),
                torch.stack([value.detach().double().reshape(()) for _, value in pairs]),
            )
            for metric, pairs in found.items()
        ]

    def _note_presence(self, now: Pending) -> None:
        self._survey()
        now.held.seen |= now.present

    def _note_loose(self) -> None:
        """Note parameters that the loss reaches and no known model holds: a graph is walked."""
        loose = [
            one
            for one in leaves(root for root, _ in self.losses.roots)
            if id(one) not in self._names.parameters and id(one) not in self.about.loose
        ]
        if loose:
            seen = {id(p) for _, one in self._told.sight() for p in one.parameters()}
            self.about.loose |= {id(p): (id(p) in seen, list(p.shape)) for p in loose}

    def _survey(self) -> None:
        """Note which parameters are frozen, and which get a gradient and are nobody's."""
        stepped = {id(p) for one in self.held.values() for p in one.parameters}
        count = 0
        for prefix, model in self.models.items():
            front = f"{prefix}." if prefix else ""
            for name, parameter in unwrapped(model).named_parameters():
                count += 1
                if not parameter.requires_grad:
                    self.about.frozen[front + name] = True
                elif id(parameter) not in stepped and parameter.grad is not None:
                    self.about.outside[front + name] = True
        self.about.parameters = max(count, self.about.parameters)
        if all(one.on_host for one in self.held.values()):
            self.about.buffers = broken_in(self.models)

    # --- Rounds and samples ----------------------------------------------------------------------

    def _open_round(self, one: Held) -> None:
        gone = not one.steps and self._left_behind()
        if self.step >= 0 and one.place not in self._stepped and not gone:
            self._stepped.add(one.place)
            return
        now = time.perf_counter()
        if self._outputs is not None:
            self.spent += self._outputs.spent
            self._outputs.spent = 0.0
        own = self.own
        if self.step >= 0:
            self.schedule.passed(self.step, now - self._last, own - self._own)
        self._last, self._own = now, own
        self.step += 1
        self._stepped = {one.place}

    def _left_behind(self) -> bool:
        """Whether an optimizer that has stepped in this round is gone: another training begins."""
        known = (*self.held.values(), *self.retired)
        return any(one.place in self._stepped and one.optimizer() is None for one in known)

    def _arm(self) -> None:
        """Let the tap look at the outputs of the step to come, or not."""
        due = self.schedule.due(self.step + 1) and self._outputs is not None
        if self._outputs is not None and self._outputs.fault is not None:
            self.about.blind["rms"] = f"the outputs could not be read: {self._outputs.fault}"
            due = False
        self.recorder.tap = self._outputs if due else None

    # --- What is watched -------------------------------------------------------------------------

    def _nests(self, optimizer: Optimizer) -> bool:
        """Whether this is a step within a step; only some classes can have such."""
        kind = type(optimizer)
        if kind not in self._plain_kinds:
            self._plain_kinds[kind] = sum("step" in vars(one) for one in kind.__mro__) < 3
        return not self._plain_kinds[kind] and is_nested(optimizer)

    def _is_mine(self, optimizer: Optimizer) -> bool:
        return not self._only or any(optimizer is one for one in self._only)

    def _held(self, optimizer: Optimizer) -> Held:
        known = self.held.get(id(optimizer))
        same = known is not None and known.optimizer() is optimizer
        if known is not None and same and known.key == key_of(optimizer):
            return known
        place = known.place if known is not None and same else self._new_place(optimizer)
        self._learn(optimizer)
        model = next(iter(self.models.values()), None) if len(self._models) == 1 else None
        found = held(optimizer, place, self.catalogue, self._names, model)
        if known is not None:
            self.retired.append(known)
            found.steps = known.steps if same else 0
        self.held[id(optimizer)] = found
        return found

    def _new_place(self, optimizer: Optimizer) -> int:
        number = self.catalogue.count("step")
        name = "optimizer" if not number else f"optimizer {number + 1}"
        return self.catalogue.place(Site(name, "step", -1, type(optimizer).__name__))

    def _learn(self, optimizer: Optimizer) -> None:
        """Find the names of what an optimizer trains."""
        wanted = {id(one) for group in optimizer.param_groups for one in group["params"]}
        if wanted <= self._names.parameters.keys():
            return
        for name, model in self._told.find(optimizer).items():
            if not any(model is one for one in self.models.values()):
                self._models[self._free(name)] = weakref.ref(model)
        self._names = names_in(self.models)
        self.ranks.meet(self.models)
        if is_compiled(self.models.values()):
            self.leave_alone()
        self.about.hooks |= {
            k: v for k, v in hooks_in(self.models).items() if k not in self.about.hooks
        }
        self._outputs = Outputs(self.catalogue, self._names)

    def _free(self, name: str) -> str:
        number, free = 1, name
        while free in self._models:
            number += 1
            free = f"{name}{number}"
        return free

    # --- The end ---------------------------------------------------------------------------------

    def fail(self, error: Exception) -> None:
        """Step aside for the rest of the run."""
        self.active = False
        self.recorder.stop("the watching ended")
        self._told.failed(error)

    @property
    def elapsed(self) -> float:
        """Seconds from the first backward pass to the last step."""
        return self._last - self._first if self._last > self._first else 0.0

    def peek(self) -> Row | None:
        """The row that may still get readings, as it is now."""
        return self._rounds.peek()

    def close(self) -> None:
        """Take in what is still on its way."""
        self._rounds.close()


def hooks_in(models: Mapping[str, nn.Module]) -> dict[str, frozenset[int]]:
    """Forward hooks of the modules that have some, by the module's name."""
    found = {}
    for prefix, model in models.items():
        for name, module in unwrapped(model).named_modules():
            mine = {**module._forward_hooks, **module._forward_pre_hooks}
            if mine:
                found[f"{prefix}.{name}".strip(".")] = frozenset(map(id, mine.values()))
    return found


def _norms(reader: Reader) -> Tensor:
    """Norms over all ranks; finite gradients whose squares overflow are read once more."""
    norms = reader.norms(settle=False)
    if norms.device.type == "cpu" and not bool(torch.isfinite(norms).all()):
        return reader.norms(double=True, settle=False)
    return norms


def _left_scale(optimizer: Optimizer) -> Number:
    """What a scaler leaves for a fused optimizer to divide the gradients by."""
    scale = vars(optimizer).get("grad_scale")
    return number_of(scale) if isinstance(scale, Tensor) else 1.0


def _scale_of(scaler: torch.amp.GradScaler) -> Number:
    scale = getattr(scaler, "_scale", None)  # the public get_scale() waits for the device
    return number_of(scale) if isinstance(scale, Tensor) else float(scaler.get_scale())


def _divided(norms: Tensor, scale: Number) -> Tensor:
    return norms if isinstance(scale, float) and scale == 1.0 else norms / scale
