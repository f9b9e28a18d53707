"""The command `cure`: trials of a script in processes of their own, and the table of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from steadygrad._cure import cured, joined, planned
from steadygrad._search import Search
from steadygrad.core.finding import from_json
from steadygrad.core.report import Report
from steadygrad.core.trial import Arm, Cure, Outcome
from steadygrad.launch.arm import Job, Result
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


@dataclass(slots=True)
class Bench:
    """Where trials are made: `workers` threads that wait for a process each."""

    options: Options
    executor: Executor
    where: tuple[str, ...] = ()
    timeout: float = 600.0
    results: dict[Arm, Result] = field(default_factory=dict)
    written: set[str] = field(default_factory=set)

    def run(self, arms: Sequence[Arm]) -> Iterator[tuple[Arm, Outcome]]:
        """Make trainings, and hand out each as it ends."""
        waiting = {
            self.executor.submit(performed, self._job(arm), self.timeout): arm for arm in arms
        }
        try:
            for done in as_completed(waiting):
                arm, result = waiting[done], done.result()
                self.results[arm] = result
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
        )


def cure_script(
    options: Options, tell: Callable[[Cure], None], say: Callable[[str], None]
) -> Report:
    """Diagnose a script, try remedies on it, and report; raises CannotLook.

    `tell` is given what is known after each trial, `say` a sentence now and then.
    """
    if not options.module and not Path(options.target).is_file():
        what = "a directory" if Path(options.target).is_dir() else "nothing"
        raise CannotLook(f"expected a training script, got {what} at {options.target}")
    seeds = range(options.seeds)
    try:
        plan = planned(options.steps, seeds, options.budget, draws=options.random)
    except ValueError as error:
        raise CannotLook(str(error)) from None
    say(f"up to {plan.most} steps of training in all, {options.workers} at a time")
    begin = time.perf_counter()
    with _pool(options.workers) as executor:
        bench = Bench(options, executor, timeout=options.timeout)
        search = Search(bench.run, plan, tell)
        first = bench.look() if not options.module else Result(Outcome())
        search.untouched()
        _check_untouched(search, options)
        bare = [bench.results[arm] for arm in search.known]
        found = [from_json(one) for result in (first, bare[0]) for one in result.findings]
        every = [one for one in found if one is not None]
        diagnosed = joined(options.target, every, (*first.clear, *bare[0].clear))
        bench.where = tuple(where for one in diagnosed.findings for where in one.where)
        slowest = max(one.outcome.seconds for one in bare)
        bench.timeout = min(options.timeout, 60 + PATIENT * slowest)
        _say_what_varies(search)
        report = cured(search, diagnosed, begin)
        if bench.written:
            search.said.append(_redirected(bench.written))
        return replace(report, cure=search.cure())


def _check_untouched(search: Search, options: Options) -> None:
    """Raise CannotLook where the script, as it is, makes no step or cannot be run."""
    outcomes = list(search.known.values())
    if all(not one.losses for one in outcomes):
        why = next((one.error for one in outcomes if one.error), "it made no step")
        last = why.strip().splitlines()[-1]
        raise CannotLook(
            f"expected {options.target} to train, got a script that made no step: {last}"
        )
    shortest = min(len(one.losses) for one in outcomes)
    if shortest < options.steps and not any(one.error for one in outcomes):
        search.said.append(f"the script ends after {shortest + 1} steps: trials are as long")


def _say_what_varies(search: Search) -> None:
    """Say so where seeds change nothing."""
    ends = {one.losses for one in search.known.values()}
    if len(ends) == 1 and len(search.known) > 1:
        search.said.append("all seeds gave the same losses: nothing in the script is drawn")


def _redirected(written: set[str]) -> str:
    names = sorted(written)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"nothing was written to {', '.join(names[:3])}{more}: trials write elsewhere"


@contextmanager
def _pool(workers: int) -> Iterator[Executor]:
    """Threads that wait for processes; an interrupt lets go of those that have not begun."""
    executor = ThreadPoolExecutor(workers, thread_name_prefix="steadygrad-cure")
    try:
        yield executor
    finally:
        _end_all()
        executor.shutdown(wait=True, cancel_futures=True)


# --- A process -----------------------------------------------------------------------------------

RUNNING: set[subprocess.Popen[bytes]] = set()


def performed(job: Job, timeout: float) -> Result:
    """Run a job in a process of its own, which has so many seconds."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="steadygrad-") as folder:
        home = Path(folder)
        (home / "job.json").write_text(json.dumps(asdict(job)))
        said = home / "said.txt"
        code = _wait(home / "job.json", said, timeout)
        result = _read(home / "result.json")
        if result is not None:
            return result
        why = _why(code, said, timeout)
        return Result(Outcome(error=why, seconds=time.perf_counter() - begin))


def _wait(job: Path, said: Path, timeout: float) -> int | None:
    """Start a process, and wait for it; None where its time was up."""
    command = [sys.executable, "-m", "steadygrad.launch.arm", str(job)]
    environment = {"WANDB_MODE": "disabled", **os.environ}
    with said.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
        )
        RUNNING.add(process)
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _end(process)
            RUNNING.discard(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it has started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def _end_all() -> None:
    for process in list(RUNNING):
        _end(process)


def _read(path: Path) -> Result | None:
    try:
        given = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    outcome = given.pop("outcome")
    outcome["losses"] = tuple(outcome["losses"])
    return Result(Outcome(**outcome), **given)


def _why(code: int | None, said: Path, timeout: float) -> str:
    if code is None:
        return f"it did not end within {timeout:.0f} s"
    with said.open("rb") as file:
        file.seek(max(0, said.stat().st_size - SHOWN))
        last = file.read().decode(errors="replace").strip()
    if code < 0:
        return f"{last}\nended by signal {-code} ({signal.Signals(-code).name})".strip()
    return last or f"it ended with exit code {code} and said nothing"
