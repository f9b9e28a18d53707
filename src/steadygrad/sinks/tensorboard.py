"""Show a run in TensorBoard; nothing has to be installed to write its files."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from steadygrad.core.finding import Finding
from steadygrad.export.tfevents import opening, records, scalars, tag, text
from steadygrad.sinks.sink import heading

TOGETHER = 32  # scalars of a record: checksums of many short records are taken together


class TensorBoard:
    """Writes an event file: numbers as scalars, findings as text.

    Two runs want two directories, as TensorBoard draws the files of one as one run.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self._file: IO[bytes] | None = None

    def open(self, _name: str) -> None:
        """Make the directory and a file in it."""
        self.directory.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time())}.steadygrad.{os.getpid()}"
        self._file = (self.directory / name).open("ab")
        self._write([opening(time.time())])

    def row(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write the numbers of a step."""
        now, pairs = time.time(), [(tag(name), value) for name, value in numbers.items()]
        some = (pairs[at : at + TOGETHER] for at in range(0, len(pairs), TOGETHER))
        self._write([scalars(now, step, dict(one)) for one in some])

    def finding(self, found: Finding) -> None:
        """Write a finding under its heading, at the step at which it begins."""
        where = f"\n\nat {', '.join(f'`{one}`' for one in found.where)}" if found.where else ""
        name = tag(f"findings/{heading(found)}")
        self._write([text(time.time(), found.steps[0], name, found.says + where)])

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _write(self, events: list[bytes]) -> None:
        if self._file is not None:
            self._file.writelines(records(events))
            self._file.flush()
