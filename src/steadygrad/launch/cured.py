"""The command `cure`: trials of a script in processes of their own, and the table of them."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from steadygrad._cure import INTERRUPTED, cured, joined, planned
from steadygrad._dask import on_dask
from steadygrad._replay import is_disguised
from steadygrad._search import Plan, Search, culprits
from steadygrad.core.finding import from_json
from steadygrad.core.report import Report
from steadygrad.core.trial import Arm, Cure, Outcome
from steadygrad.launch.arm import JOB, RESULT, SAID, Job, Result, obey
from steadygrad.launch.server import SERVER, begin
from steadygrad.launch.training import script_at
from steadygrad.replay.captured import CannotLook

SHOWN = 2000  # characters of what a process said last that are kept
PATIENT = 5.0  # times as long as the untouched training a trial may take, and a minute more


@dataclass(frozen=True, slots=True)
class Options:
    """What to cure, and how much to spend on it."""

    target: str
    arguments: tuple[str, ...] = ()
    module: bool = False
    steps: int = 60
    seeds: int = 3
    budget: int = 1000
    workers: int = 1
    timeout: float = 600.0
    random: bool = True
    dask: str | None = None


@dataclass(slots=True)
class Bench:
    """Where trials are made: `workers` threads that wait for a process each."""

    options: Options
    executor: Executor
    where: tuple[str, ...] = ()
    timeout: float = 600.0
    results: dict[Arm, Result] = field(default_factory=dict)
    written: set[str] = field(default_factory=set)
    unfit: dict[str, str] = field(default_factory=dict)

    def run(self, arms: Sequence[Arm]) -> Iterator[tuple[Arm, Outcome]]:
        """Make trainings, and hand out each as it ends."""
        waiting = {
            self.executor.submit(performed, self._job(arm), self.timeout): arm for arm in arms
        }
        try:
            for done in as_completed(waiting):
                arm, result = waiting[done], done.result()
                self.results[arm] = result
                self.unfit |= result.unfit
                self.written |= set(result.written)
                yield arm, result.outcome
        finally:
            for one in waiting:
                one.cancel()

    def look(self) -> Result:
        """Check the script before its first step."""
        job = replace(self._job(Arm((), 0, 0)), looks=True)
        return self.executor.submit(performed, job, self.timeout).result()

    def _job(self, arm: Arm) -> Job:
        given = self.options
        return Job(
            given.target,
            given.arguments,
            given.module,
            arm.remedies,
            arm.seed,
            arm.steps,
            self.where,
            screens=not arm.remedies and arm.seed == 0,
        )


def cure_script(
    options: Options, tell: Callable[[Cure], None], say: Callable[[str], None]
) -> Report:
    """Diagnose a script, try remedies on it, and report; raises CannotLook.

    `tell` is given what is known after each trial, `say` a sentence now and then.
    """
    plan = _plan(options)
    say(f"up to {options.budget} steps of training in all, {options.workers} trials at a time")
    since = time.perf_counter()
    with _executor(options) as executor:
        bench = Bench(options, executor, timeout=options.timeout)
        search = Search(bench.run, plan, tell, unfit=bench.unfit)
        first = Result(Outcome())
        try:
            first = bench.look() if not options.module else first
            search.untouched()
        except KeyboardInterrupt:
            if not search.known:
                raise
            search.said.append(INTERRUPTED)
            cost = {"seconds": time.perf_counter() - since, "steps": float(search.spent)}
            return replace(_diagnosed(bench, first), cure=search.cure(), cost=cost)
        _check_untouched(search, options)
        diagnosed = _diagnosed(bench, first)
        bench.where = culprits(diagnosed.findings)
        slowest = max(one.seconds for one in search.known.values())
        bench.timeout = min(options.timeout, 60 + PATIENT * slowest)
        _say_what_varies(search)
        report = cured(search, diagnosed, since)
        if bench.written:
            search.said.append(_redirected(bench.written))
        return replace(report, cure=search.cure())


def _plan(options: Options) -> Plan:
    """How much is spent; raise CannotLook where there is nothing to begin with."""
    if not options.module:
        script_at(options.target)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise CannotLook(
            "expected to be started once, as trials are of one process each, got "
            f"WORLD_SIZE={os.environ['WORLD_SIZE']}: start steadygrad cure without torchrun"
        )
    seeds = range(options.seeds)
    try:
        return planned(options.steps, seeds, options.budget, draws=options.random)
    except ValueError as error:
        raise CannotLook(str(error)) from None


def _diagnosed(bench: Bench, first: Result) -> Report:
    """What a check, and a watch of the first untouched training, have found."""
    untouched = min(bench.results, key=lambda arm: arm.seed)
    results = [first, bench.results[untouched]]
    found = [from_json(one) for result in results for one in result.findings]
    every = [one for one in found if one is not None]
    clear = [one for result in results for one in result.clear]
    return joined(bench.options.target, every, clear)


def _check_untouched(search: Search, options: Options) -> None:
    """Raise CannotLook where the script, as it is, makes no step or cannot be run.

    An exception while the losses are not finite may be what is to be cured.
    """
    outcomes = list(search.known.values())
    errors = [one.error for one in outcomes if one.error]
    finite = all(math.isfinite(loss) for one in outcomes for loss in one.losses)
    if len(errors) == len(outcomes) and finite and not is_disguised(errors[0]):
        raise CannotLook(
            f"expected {options.target} to train for {options.steps} steps, got {_last(errors[0])}"
        )
    shortest = min(len(one.losses) for one in outcomes)
    if shortest < options.steps and not errors:
        search.said.append(f"the script ends after {shortest + 1} steps: trials are as long")


def _last(error: str) -> str:
    """The last line of a traceback, with the place that it came from."""
    places = re.findall(r'File "(.+?)", line (\d+)', error)
    at = f" ({os.path.basename(places[-1][0])}:{places[-1][1]})" if places else ""
    return error.strip().splitlines()[-1] + at


def _say_what_varies(search: Search) -> None:
    """Say so where seeds change nothing."""
    ends = {one.losses for one in search.known.values()}
    losses = next(iter(ends), ())
    if len(ends) == 1 and len(search.known) > 1 and losses and all(map(math.isfinite, losses)):
        search.said.append("all seeds gave the same losses: nothing in the script is drawn")


def _redirected(written: set[str]) -> str:
    names = sorted(written)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"nothing was written to {', '.join(names[:3])}{more}: trials write elsewhere"


@contextmanager
def _executor(options: Options) -> Iterator[Executor]:
    """Threads that wait for processes, here or on a cluster; an interrupt ends what is running."""
    if options.dask is not None:
        with ExitStack() as stack:
            try:
                executor = stack.enter_context(on_dask(options.dask))
            except (ModuleNotFoundError, ConnectionError, ValueError) as error:
                raise CannotLook(str(error)) from None
            yield executor
        return
    threads = ThreadPoolExecutor(options.workers)
    try:
        yield threads
    finally:
        for leader in list(RUNNING):
            _end(leader)
        threads.shutdown(wait=True, cancel_futures=True)


# --- A process -----------------------------------------------------------------------------------

RUNNING: set[int] = set()
"""Processes that make a trial now, each the leader of a session of its own."""


def performed(job: Job, timeout: float) -> Result:
    """Run a job in a process of its own, which has so many seconds."""
    since = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="steadygrad-") as folder:
        home = Path(folder)
        (home / JOB).write_text(json.dumps(asdict(job)))
        daemon = multiprocessing.current_process().daemon  # as a worker of Dask, which may not fork
        code = (_fresh if daemon else _forked)(home, timeout)
        result = _read(home / RESULT)
        if result is not None:
            return _with_last_words(result, home / SAID)
        why = _why(code, home / SAID, timeout)
        return Result(Outcome(error=why, seconds=time.perf_counter() - since))


def _forked(home: Path, timeout: float) -> int | None:
    """Fork a process off one that has imported torch; None where its time was up."""
    begin()
    process = SERVER.Process(target=obey, args=(str(home),))
    process.start()
    RUNNING.add(process.pid or 0)
    try:
        process.join(timeout)
        return process.exitcode
    finally:
        _end(process.pid or 0)
        process.join()


def _fresh(home: Path, timeout: float) -> int | None:
    """Start an interpreter of its own."""
    command = [sys.executable, "-m", "steadygrad.launch.arm", str(home)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    RUNNING.add(process.pid)
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        return None
    finally:
        _end(process.pid)
        process.wait()


def _end(leader: int) -> None:
    """End a process and all that it has started."""
    RUNNING.discard(leader)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def _read(path: Path) -> Result | None:
    try:
        given = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    outcome = given.pop("outcome")
    outcome["losses"] = tuple(outcome["losses"])
    return Result(Outcome(**outcome), **given)


def _with_last_words(result: Result, said: Path) -> Result:
    """The result; where the script has exited, with what it said last, as argparse does."""
    if "SystemExit" not in result.outcome.error:
        return result
    lines = said.read_text(errors="replace").strip().splitlines()[-1:]
    error = "\n".join([result.outcome.error, *lines])
    return replace(result, outcome=replace(result.outcome, error=error))


def _why(code: int | None, said: Path, timeout: float) -> str:
    if code is None:
        return f"it did not end within {timeout:.0f} s"
    with said.open("rb") as file:
        file.seek(max(0, said.stat().st_size - SHOWN))
        last = file.read().decode(errors="replace").strip()
    if code < 0:
        memory = ": out of memory?" if -code == signal.SIGKILL else ""
        ended = f"ended by signal {-code} ({signal.Signals(-code).name}){memory}"
        return f"{last}\n{ended}".strip()
    return last or f"it ended with exit code {code} and said nothing"
