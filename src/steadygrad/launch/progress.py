"""A line that says how far a search has come; a few plain lines where there is no terminal."""

from __future__ import annotations

from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from steadygrad.core.trial import Cure


class Bar:
    """Progress in steps of training, of `most`; a context manager."""

    def __init__(self, stream: TextIO, most: int) -> None:
        self._stream, self._most = stream, most
        self._shown = stream.isatty()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(20),
            TextColumn("{task.completed:.0f} of {task.total:.0f} steps"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(file=stream, highlight=False),
            transient=True,
            disable=not self._shown,
        )
        self._task = self._progress.add_task("looking", total=most)

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def tell(self, cure: Cure) -> None:
        """Show how many trials there are."""
        count = len(cure.trials)
        what = f"{count} trials" if count != 1 else "no change"
        self._progress.update(self._task, completed=min(cure.spent, self._most), description=what)

    def say(self, sentence: str) -> None:
        """Say something above the line."""
        self._progress.console.print(f"steadygrad: {sentence}", markup=False, soft_wrap=True)
