"""A watch that a host's callback starts and ends, and the report that it shows in the end."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from torch import nn
from torch.optim import Optimizer

from steadygrad._watch import Watch, is_first_rank, watch
from steadygrad.core.report import Report
from steadygrad.render.text import text
from steadygrad.render.words import glyphs_for
from steadygrad.sinks.sink import Sink


def show(report: Report) -> None:
    """Write a report to standard error, as `steadygrad run` does."""
    color = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    ascii_only = glyphs_for(sys.stderr.encoding).ascii
    drawn = text(report, width=_width(), color=color, ascii_only=ascii_only)
    sys.stderr.write(drawn.rstrip("\n") + "\n")


class Hosted:
    """The watch of a training that somebody else runs; of one at a time.

    A host may not say that a training was ended by an exception: then the watch is ended before the
    next begins, or with the interpreter.
    """

    def __init__(
        self,
        *,
        run: str | Path | None = None,
        overhead: float = 0.01,
        to: Sink | Sequence[Sink] = (),
        show: Callable[[Report], object] = show,
    ) -> None:
        """Plan a watch as `sg.watch` does; `show` is given the report when the training ends."""
        self._watch, self._show = partial(watch, run=run, overhead=overhead, to=to), show
        self.watch: Watch | None = None
        self._shows = True

    def begin(self, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        """Start to watch."""
        self.end()
        self._shows = is_first_rank()  # in the end the ranks may have parted
        self.watch = self._watch(model, optimizers, name=type(model).__name__)
        atexit.register(self._exit)

    def end(self, error: BaseException | None = None) -> None:
        """End the watch, if one has begun, and show its report on the first rank."""
        if self.watch is None or self.watch.is_closed:
            return
        atexit.unregister(self._exit)
        self.watch.__exit__(None if error is None else type(error), error, None)
        report = _report(self.watch) if self._shows else None
        if report is not None:
            self._show(report)

    def _exit(self) -> None:
        """End with the interpreter, after an exception that nobody has told of."""
        self.end(getattr(sys, "last_value", None))


def _report(watch: Watch) -> Report | None:
    try:
        return watch.report()
    except Exception as error:  # a fault of ours must not change how the training ends
        why = f"no report, by a fault of ours: {type(error).__name__}: {error}"
        sys.stderr.write(f"steadygrad: {why}\n")
        return None


def _width() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except OSError:
        return int(os.environ.get("COLUMNS", "") or 100)
