"""One trial of a user's script, in a process of its own: `python -m steadygrad.launch.arm HOME`."""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from steadygrad._watch import Plan, Watch
from steadygrad.core.finding import as_json
from steadygrad.core.report import Report
from steadygrad.core.trial import LOST, Outcome, lost
from steadygrad.launch.excuse import told
from steadygrad.launch.harmless import Scratch, harmless
from steadygrad.launch.screen import screened
from steadygrad.launch.training import ended, module, script
from steadygrad.remedies.applied import BY_NAME, Applied
from steadygrad.remedies.catalogue import REMEDIES
from steadygrad.remedies.instead import Instead
from steadygrad.remedies.remedy import Scene, Unfit
from steadygrad.replay.captured import CannotLook
from steadygrad.replay.randomness import kept, seed_all
from steadygrad.taps.modes import put_beneath

JOB, RESULT, SAID = "job.json", "result.json", "said.txt"
STUBBORN = 3  # times that a script may go on after its last step, before its process is ended


class Enough(BaseException):
    """The trial is over: as much as a script may know of it."""


@dataclass(frozen=True, slots=True)
class Job:
    """A trial of a script: with which remedies, for how long.

    With `looks` it is a check alone; with `screens` it also says which remedies are unfit.
    """

    target: str
    arguments: tuple[str, ...] = ()
    module: bool = False
    remedies: tuple[str, ...] = ()
    seed: int = 0
    steps: int = 60
    where: tuple[str, ...] = ()
    looks: bool = False
    screens: bool = False


@dataclass(slots=True)
class Result:
    """What a process leaves behind: the outcome, what was found, and what it wrote elsewhere."""

    outcome: Outcome
    findings: list[dict[str, Any]] = field(default_factory=list)  # JSON-like
    clear: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    unfit: dict[str, str] = field(default_factory=dict)


class Lane:
    """Applies remedies at the first step of the first optimizer, and ends the script in time.

    The first step is not made: its gradients are those of the weights before the change.
    """

    def __init__(self, job: Job, watch: Watch, leave: Callable[[], None]) -> None:
        self._job, self._watch, self._leave = job, watch, leave
        self.applied: Applied | None = None
        self.unfit = ""
        self.screened: dict[str, str] = {}
        self.made = -1  # steps since the change
        self._mine: Optimizer | None = None
        self._told = 0

    def before(self, optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        """An optimizer is about to step."""
        if self._is_over():
            self._end()
        if self._mine is None:
            self._mine = optimizer
            self._begin(optimizer)
        elif optimizer is self._mine and self.applied is not None:
            self.applied.before(optimizer, self.made)

    def after(self, optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        """It has stepped."""
        if optimizer is not self._mine:
            return
        if self.made >= 0 and self.applied is not None:
            self.applied.after(optimizer, self.made)
        self.made += 1
        if self._is_over():
            self._end()

    def _is_over(self) -> bool:
        return bool(self.unfit) or self.made >= self._job.steps or self._is_lost()

    def _is_lost(self) -> bool:
        if not self._job.remedies:
            return False
        return lost([row.read["loss"][0] for row in self._watch.rows[-LOST:] if "loss" in row.read])

    def _end(self) -> None:
        self._told += 1
        if self._told >= STUBBORN:
            self._leave()
        raise Enough

    def _begin(self, optimizer: Optimizer) -> None:
        """Change the training, and let this step move nothing."""
        remedies = [BY_NAME[name] for name in self._job.remedies]
        if self._job.screens:
            with kept():
                self.screened = screened(self._scene(optimizer), REMEDIES)
        if remedies:
            try:
                with kept():
                    self.applied = applied = Applied(remedies, self._scene(optimizer))
            except Unfit as reason:
                self.unfit = str(reason)
                raise Enough from None
            if applied.functions:
                put_beneath(Instead(applied.functions), Instead)
        for group in optimizer.param_groups:
            for one in group["params"]:
                one.grad = None

    def _scene(self, optimizer: Optimizer) -> Scene:
        where = self._job.where
        try:
            captured = self._watch.captured(optimizer)
            return Scene(captured.model, optimizer, captured.loss, where)
        except CannotLook:
            models = list(self._watch.models.values())
            model = models[0] if len(models) == 1 else nn.ModuleList(models)
            return Scene(model, optimizer, None, where)


def perform(job: Job, home: Path, save: Callable[[Result], None]) -> None:
    """Run a script as far as the trial goes, and hand the result to `save`."""
    scratch = Scratch(home)
    begin = time.perf_counter()
    start = module if job.module else script
    with ExitStack() as stack:
        stack.enter_context(harmless(scratch))
        program, variables = start(job.target, job.arguments)
        _seed(job.seed)
        watch = Watch((), (), Plan(None, 0.05, job.target, _silent, variables))

        def finish(error: str = "") -> None:
            seconds = time.perf_counter() - begin
            save(_result(lane, watch, scratch, error, seconds))

        def leave() -> None:
            finish()
            os._exit(0)

        lane = Lane(job, watch, leave)
        stack.callback(register_optimizer_step_pre_hook(lane.before).remove)
        stack.callback(register_optimizer_step_post_hook(lane.after).remove)
        ending = ended(program)
        error = ending.error
        finish("" if error is None or _is_expected(error) else told(error))


def _is_expected(error: BaseException) -> bool:
    if isinstance(error, SystemExit):
        return error.code in (None, 0)
    return isinstance(error, Enough)


def _result(lane: Lane, watch: Watch, scratch: Scratch, error: str, seconds: float) -> Result:
    watch.close()
    rows = [row for row in watch.rows if "loss" in row.read][1:]
    unit = 1.0 if lane.applied is None else lane.applied.unit
    losses = tuple(float(row.read["loss"][0]) * unit for row in rows)
    if lane.made < 0 and not error:
        error = "no step of an optimizer in this process (ranks in other processes are not seen)"
    applied = lane.applied
    patch, imitates = ("", False) if applied is None else (applied.patch, applied.imitates)
    own = applied is not None and applied.own
    outcome = Outcome(losses, patch, imitates, lane.unfit, error, seconds, own)
    report: Report = watch.report()
    found = [as_json(one) for one in (*report.findings, *report.folded)]
    written = sorted(scratch.written)
    return Result(outcome, found, list(report.clear), written, lane.screened)


def look(job: Job, home: Path, save: Callable[[Result], None]) -> None:
    """Check a script before its first step, and hand what was found to `save`."""
    from steadygrad.launch.look import look_at
    from steadygrad.launch.target import launch

    scratch = Scratch(home)

    def looked(captured: Any) -> int:
        report = look_at(captured, target=job.target, seed=0, probes=True)
        found = [as_json(one) for one in (*report.findings, *report.folded)]
        save(Result(Outcome(), found, list(report.clear), sorted(scratch.written)))
        return 0

    with harmless(scratch):
        _seed(job.seed)
        launch(job.target, job.arguments, looked, described=(), seed=0)


def _silent(_: str) -> None:
    """What a watch has to say beside its report."""


def _seed(seed: int) -> None:
    """Seed all generators, and let what a script seeds by itself vary with the seed too."""
    shift = seed * 1_000_003
    seed_all(shift)
    if seed == 0:
        return
    manual, python, numpy_seed = torch.manual_seed, random.seed, np.random.seed

    def torch_seeded(given: int) -> torch.Generator:
        return manual(int(given) + shift)

    def python_seeded(given: Any = None, *args: Any) -> None:
        python(given + shift if isinstance(given, int) else given, *args)

    def numpy_seeded(given: Any = None) -> None:
        numpy_seed((given + shift) % 2**32 if isinstance(given, int) else given)

    replaced = ((torch, torch_seeded), (random, python_seeded), (np.random, numpy_seeded))
    for owner, seeded in replaced:  # this process is the trial's own
        setattr(owner, "manual_seed" if owner is torch else "seed", seeded)


def obey(folder: str) -> None:
    """Do the job that a directory holds, and leave the result there; what is said goes to a file.

    The process leads a session of its own, so that it can be ended with all that it starts.
    """
    home = Path(folder)
    if os.getsid(0) != os.getpid():
        os.setsid()
    _redirect(home / SAID)
    os.environ.setdefault("WANDB_MODE", "disabled")
    given = json.loads((home / JOB).read_text())
    lists = {key: tuple(value) for key, value in given.items() if isinstance(value, list)}
    job = Job(**{**given, **lists})

    def save(result: Result) -> None:
        fresh = home / "result.new"
        fresh.write_text(json.dumps(asdict(result)))
        fresh.rename(home / RESULT)

    (look if job.looks else perform)(job, home, save)


def _redirect(path: Path) -> None:
    """Send what is written to standard output and error to a file, and read from nothing."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    said = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(nothing, 0)
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.stdin = os.fdopen(0, closefd=False)  # multiprocessing has put another in its place


if __name__ == "__main__":
    obey(sys.argv[1])
