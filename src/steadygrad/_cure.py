"""The verb `cure`: try remedies on the user's own training, and prescribe what is proven."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from statistics import fmean
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from steadygrad._check import check
from steadygrad._search import MENDING, UNJUDGED, Plan, Search, Tell, culprits, proposals
from steadygrad._watch import Plan as WatchPlan
from steadygrad._watch import Watch
from steadygrad.core.finding import Finding, Severity
from steadygrad.core.record import record_of
from steadygrad.core.report import Report, fold
from steadygrad.core.trial import Arm, Cure, Outcome, lost
from steadygrad.detectors import DETECTORS, WATCHING
from steadygrad.remedies.applied import BY_NAME, Applied
from steadygrad.remedies.instead import Instead
from steadygrad.remedies.remedy import Scene, Unfit
from steadygrad.replay.randomness import kept, seed_all

UNBOUNDED = "the loss has no lower bound: only what mends it was tried, as all else seems to help"
INTERRUPTED = "interrupted: this is what was known by then"


@dataclass(frozen=True, slots=True)
class Setup:
    """A training that is ready to start.

    `loss` takes the model and a batch, and returns a scalar; `batches` are gone through in order,
    and again from the start where they can be.
    """

    model: nn.Module
    optimizer: Optimizer
    loss: Callable[[nn.Module, Any], Tensor]
    batches: Iterable[Any]


Make = Callable[[], Setup]


def cure(
    setup: Make,
    *,
    steps: int = 60,
    seeds: Sequence[int] = (0, 1, 2),
    budget: int = 1000,
    executor: Executor | None = None,
    tell: Tell | None = None,
) -> Report:
    """Find out what is wrong with a training, and which change proves to help.

    Every trial is `setup()` under a seed, trained for some steps with one change; what helps must
    be better than no change on every seed. Random numbers are as before afterwards.

    Args:
        setup: Makes a training anew; picklable where `executor` runs other processes.
        steps: Optimizer steps of a whole trial.
        seeds: Seeds of torch's, Python's and NumPy's generators, two or more.
        budget: Steps of training in all, at most.
        executor: Where trials run, several at once; here and one by one without it.
        tell: Called with what is known after each trial.

    Raises:
        TypeError: where `setup` makes no Setup.
        ValueError: for fewer than two seeds, or a budget that is too small for them.
    """
    plan = planned(steps, seeds, budget)
    with kept():
        made = setup()
    if not isinstance(made, Setup):
        raise TypeError(
            "cure(setup) expected a function that returns a steadygrad.Setup(model, optimizer, "
            f"loss, batches), got {type(made).__name__}"
        )
    begin = time.perf_counter()
    diagnosed = diagnosis_of(setup, plan)
    where = culprits(diagnosed.findings)
    search = Search(_runner(setup, executor, where), plan, tell)
    return cured(search, diagnosed, begin)


def planned(steps: int, seeds: Sequence[int], budget: int, *, draws: bool = True) -> Plan:
    """A plan, or ValueError where it cannot be kept."""
    plan = Plan(steps, tuple(seeds), budget, draws)
    if steps < 8:
        raise ValueError(f"cure(steps=) expected 8 or more, got {steps}: fewer tell nothing")
    if len(set(seeds)) < 2:
        raise ValueError(
            f"cure(seeds=) expected two or more, got {list(seeds)}: one proves nothing"
        )
    if plan.least > budget:
        raise ValueError(
            f"cure(budget=) expected {plan.least} steps or more for {steps} steps on {len(seeds)} "
            f"seeds, got {budget}: take fewer steps, or a larger budget"
        )
    return plan


def cured(search: Search, diagnosed: Report, begin: float) -> Report:
    """Search for a cure of what was found, unless nothing was and the loss falls.

    An interrupt ends the search; what is known by then is reported.
    """
    try:
        search.untouched()
        candidates = proposals(diagnosed.findings, diagnosed.folded, general=search.stands)
        if any(one.code in UNJUDGED for one in diagnosed.findings):
            search.said.append(UNBOUNDED)
            search.mend([one for one in candidates if one.kind in MENDING])
        elif search.stands or diagnosed.worst > Severity.note:
            search.search(candidates)
        search.confirm()
    except KeyboardInterrupt:
        search.said.append(INTERRUPTED)
    cost = {"seconds": time.perf_counter() - begin, "steps": float(search.spent)}
    found = search.cure()
    stuck = [_stuck(found)] if found.chosen and diagnosed.worst <= Severity.note else []
    return replace(diagnosed, findings=(*stuck, *diagnosed.findings), cure=found, cost=cost)


def _stuck(cure: Cure) -> Finding:
    """What is known only by trial: nothing else was found, yet another training learns."""
    bare, chosen = cure.trials[0], cure.prescription
    now = fmean(chosen.after) if chosen is not None else math.nan
    return Finding(
        Severity.risk,
        f"in {bare.steps} steps the loss does not fall from where it is, {fmean(bare.after):.3g}; "
        f"with {cure.chosen} it comes to {now:.3g} in as many.",
        ("loss",),
        {"loss": fmean(bare.after), "with the change": now},
        magnitude=4.0,
        code="G411",
        name="stuck-loss",
    )


def joined(target: str, findings: Sequence[Finding], clear: Sequence[str] = ()) -> Report:
    """A report on what a check and a watch have found, causes first; of the same, the first."""
    once: list[Finding] = []
    for one in findings:
        same = (p for p, o in enumerate(once) if o.code == one.code and {*one.where} <= {*o.where})
        place = next(same, None)
        if place is None:
            once.append(one)
        else:
            worse = max(one.severity, once[place].severity)
            once[place] = replace(once[place], severity=worse)
    roots, folded = fold(once, (*DETECTORS, *WATCHING))
    found = {one.code for one in once}
    kept_clear = tuple(dict.fromkeys(code for code in clear if code not in found))
    return Report(target, record_of([]), roots, folded, kept_clear)


# --- A training made by a function ----------------------------------------------------------------


def diagnosis_of(setup: Make, plan: Plan) -> Report:
    """Check a training before its first step, and watch it for some."""
    with seeded(plan.seeds[0]):
        made = setup()
        batch = next(iter(made.batches))
        looked = check(made.model, loss=lambda m: made.loss(m, batch), optimizer=made.optimizer)
    with seeded(plan.seeds[0]):
        made = setup()
        silent = WatchPlan(None, 0.05, type(made.model).__name__, lambda _: None)
        with Watch((made.model,), (made.optimizer,), silent) as run:
            for _ in trained(made, plan.steps):
                pass
        watched = run.report()
    every = [*looked.findings, *looked.folded, *watched.findings, *watched.folded]
    target = type(made.model).__name__
    return joined(target, every, (*looked.clear, *watched.clear))


def _runner(
    setup: Make, executor: Executor | None, where: tuple[str, ...]
) -> Callable[..., Iterator[tuple[Arm, Outcome]]]:
    def here(arms: Sequence[Arm]) -> Iterator[tuple[Arm, Outcome]]:
        for arm in arms:
            yield arm, performed(setup, arm, where)

    def there(arms: Sequence[Arm]) -> Iterator[tuple[Arm, Outcome]]:
        if executor is None:
            raise RuntimeError("expected an executor")
        waiting = {executor.submit(performed, setup, arm, where): arm for arm in arms}
        for done in as_completed(waiting):
            yield waiting[done], done.result()

    return here if executor is None else there


def performed(setup: Make, arm: Arm, where: tuple[str, ...] = ()) -> Outcome:
    """Make one training, and say how it ended; `where` are the places that findings point at."""
    begin, losses = time.perf_counter(), list[float]()
    applied: Applied | None = None
    error = unfit = ""
    try:
        with seeded(arm.seed):
            made, applied = _applied(setup(), arm, where)
            for loss in trained(made, arm.steps, applied):
                losses.append(loss)
                if arm.remedies and lost(losses):
                    break
    except Unfit as reason:
        unfit = str(reason)
    except Exception as fault:  # whatever a user's training raises: one arm is lost, no more
        error = f"{type(fault).__name__}: {fault}"
    seconds = time.perf_counter() - begin
    if applied is None:
        return Outcome(tuple(losses), unfit=unfit, error=error, seconds=seconds)
    scaled = tuple(one * applied.unit for one in losses)
    return Outcome(scaled, applied.patch, applied.imitates, unfit, error, seconds, applied.own)


def _applied(made: Setup, arm: Arm, where: tuple[str, ...]) -> tuple[Setup, Applied]:
    """Apply an arm's remedies; the first batch is looked at, and comes first again.

    Random numbers stay where they were, so that the batches are those of the untouched training.
    """
    batches = iter(made.batches)
    first = next(batches)
    if batches is made.batches:  # an iterator, which has moved on
        made = replace(made, batches=chain([first], batches))

    def loss(model: nn.Module) -> Tensor:
        with kept():
            return made.loss(model, first)

    with kept():
        scene = Scene(made.model, made.optimizer, loss, where)
        return made, Applied([BY_NAME[name] for name in arm.remedies], scene)


def trained(made: Setup, steps: int, applied: Applied | None = None) -> Iterator[float]:
    """Train for some steps, and yield the loss of each."""
    with Instead({} if applied is None else applied.functions):
        for step, batch in enumerate(islice(_again(made.batches), steps)):
            made.optimizer.zero_grad()
            loss = made.loss(made.model, batch)
            loss.backward()
            if applied is not None:
                applied.before(made.optimizer, step)
            made.optimizer.step()
            if applied is not None:
                applied.after(made.optimizer, step)
            yield float(loss.detach())


def _again(batches: Iterable[Any]) -> Iterator[Any]:
    """Batches in order, from the start once more when they are gone, where they can be."""
    while True:
        some = False
        for batch in batches:
            some = True
            yield batch
        if not some:
            return


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch, Python and NumPy inside the block, and put them back as they were."""
    with kept():
        seed_all(seed)
        yield
