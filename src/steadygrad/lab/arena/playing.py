"""Make attempts: from the store what is known, the rest here or by any executor, as they end."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing import get_context

from steadygrad.lab.arena.board import Board
from steadygrad.lab.arena.grid import Attempt, Score
from steadygrad.lab.arena.rounds import Play
from steadygrad.lab.arena.store import Store
from steadygrad.lab.arena.training import performed

Tell = Callable[[float], None]  # the work of an attempt, when it has ended

AT_ONCE = 64  # attempts that an executor is handed at most: a million would fill the memory
INTERRUPTED = 130


class Died(Exception):  # noqa: N818 - not an error of ours: the system ends processes
    """A process was ended from outside, or the disk is full."""


def player(board: Board, store: Store, executor: Executor | None, tell: Tell) -> Play:
    """Return what makes attempts: the longest first, so that none is left over at the end."""

    def play(attempts: Sequence[Attempt]) -> None:
        missing = []
        for attempt in attempts:
            known = store.score(attempt)
            if known is None:
                missing.append(attempt)
            else:
                board.put(attempt, known)
                tell(work(attempt))
        for attempt, score in _made(sorted(missing, key=work, reverse=True), executor):
            board.put(attempt, score)
            _kept(store, attempt, score)
            tell(work(attempt))

    return play


def _kept(store: Store, attempt: Attempt, score: Score) -> None:
    try:
        store.keep(attempt, score)
    except OSError as error:
        raise Died(f"expected to write down what was made: {error.strerror}") from None


def work(attempt: Attempt) -> float:
    """Return what an attempt costs, in steps of a block: what most of the time goes to."""
    return float(attempt.steps * max(1, attempt.cell.setting.depth))


def _made(
    attempts: Sequence[Attempt], executor: Executor | None
) -> Iterator[tuple[Attempt, Score]]:
    if executor is None:
        return ((attempt, performed(attempt)) for attempt in attempts)
    return _elsewhere(attempts, executor)


def _elsewhere(attempts: Sequence[Attempt], executor: Executor) -> Iterator[tuple[Attempt, Score]]:
    """Yield scores as they come; so many attempts wait at a time."""
    left = iter(attempts)
    waiting: dict[Future[Score], Attempt] = {}
    try:
        while True:
            new = list(islice(left, AT_ONCE - len(waiting)))
            waiting |= {executor.submit(performed, attempt): attempt for attempt in new}
            if not waiting:
                return
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                yield waiting.pop(future), future.result()
    except BrokenProcessPool:
        raise Died(
            "expected the processes to live, one was ended from outside (out of memory?): run the "
            "same command again, perhaps with fewer --workers; what was finished is kept"
        ) from None
    finally:
        for future in waiting:
            future.cancel()


@contextmanager
def pool(workers: int) -> Iterator[Executor | None]:
    """Open processes that make attempts; none for one worker: they are made here.

    Ctrl-C reaches the processes as it reaches us, and ends each at once.
    """
    if workers == 1:
        yield None
        return
    context = get_context("forkserver" if os.name == "posix" else "spawn")
    executor = ProcessPoolExecutor(workers, context, _die_quietly)
    try:
        yield executor
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def _die_quietly() -> None:
    signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
