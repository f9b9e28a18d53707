"""Feeds a sink from a thread of its own, so that no step waits for a network."""

from __future__ import annotations

import atexit
import os
import random
import threading
from collections.abc import Callable, Sequence
from functools import partial
from queue import SimpleQueue

from steadygrad.core.finding import Finding, Severity
from steadygrad.core.record import Site
from steadygrad.core.steps import Row
from steadygrad.export.columns import numbers
from steadygrad.sinks.sink import Sink

MOST_WAITING = 1000  # rows that wait for a sink that hangs; what comes then is dropped
PATIENCE = 30.0  # seconds that a watch waits for a sink to open, and to close: chosen by us

Job = Callable[[], object]


class Feed:
    """Gives a sink what a watch reads and finds; what the sink raises is said once.

    A forked child gives nothing. The end of the interpreter closes the sink, before its own package
    is shut down: what is registered last ends first, so that a feed begins when its sink is open.
    """

    def __init__(self, sink: Sink, name: str, say: Callable[[str], None]) -> None:
        self._sink, self._say = sink, say
        self._told = self._closed = False
        self._shown: set[tuple[str, tuple[str, ...]]] = set()  # code and place of findings
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._ready = threading.Event()
        self._process = os.getpid()
        self._thread = threading.Thread(
            target=self._run, args=(name,), name="steadygrad-sink", daemon=True
        )
        drawn = random.getstate()
        self._thread.start()
        self._ready.wait(PATIENCE)
        random.setstate(drawn)  # MLflow draws the name of a run from what are the user's numbers
        atexit.register(self.close)

    def row(self, row: Row, sites: Sequence[Site]) -> None:
        """Show a step soon; its arrays are not copied."""
        if self._jobs.qsize() < MOST_WAITING:
            self._put(lambda: self._sink.row(row.step, numbers(row, sites)))

    def findings(self, found: Sequence[Finding]) -> None:
        """Show what was found, each once, unless it asks for nothing."""
        self._put(partial(self._show, lambda: found))

    def close(
        self, last: Callable[[], Sequence[Finding]] = tuple, patience: float = PATIENCE
    ) -> None:
        """Show the `last` findings, which are sought in the thread, and end the sink's run."""
        if self._closed or os.getpid() != self._process:
            return
        self._put(partial(self._show, last))
        self._closed = True
        self._jobs.put(None)
        self._thread.join(patience)
        if self._thread.is_alive():
            self._fail(f"no end of it in {patience:g} s")
        atexit.unregister(self.close)

    # --- The thread ------------------------------------------------------------------------------

    def _put(self, job: Job) -> None:
        if os.getpid() == self._process and not self._closed:
            self._jobs.put(job)

    def _run(self, name: str) -> None:
        self._closed = not self._does(partial(self._sink.open, name))
        self._ready.set()
        if self._closed:
            return
        while (job := self._jobs.get()) is not None:
            self._does(job)
        self._does(self._sink.close)

    def _does(self, job: Job) -> bool:
        try:
            job()
        except Exception as error:  # no fault of a sink ends a run
            self._fail(f"{type(error).__name__}: {error}")
            return False
        return True

    def _show(self, sought: Callable[[], Sequence[Finding]]) -> None:
        for one in sought():
            if one.severity > Severity.note and (one.code, one.where) not in self._shown:
                self._shown.add((one.code, one.where))
                self._sink.finding(one)

    def _fail(self, why: str) -> None:
        if not self._told:
            self._told = True
            name = type(self._sink).__name__
            self._say(f"expected to show the run in {name}, got {why}: training goes on")
