"""A Finding is a fault with its evidence; a Detector finds one illness in a Record."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Literal

import numpy as np

from steadygrad.core.record import Record

Confidence = Literal["measured", "likely", "possible"]


class Severity(IntEnum):
    """How much a finding matters: a note asks for nothing, a risk for a look, broken for repair."""

    note = 0
    risk = 1
    broken = 2


@dataclass(frozen=True, slots=True)
class Advice:
    """Something to try: the remedy's name and, where there is one, the lines to paste."""

    remedy: str
    patch: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault: what, where, how we know, and what to try.

    `where` holds qualified names, or `data`, `target`, `loss`, `optimizer`, `lr`, worst first.
    `evidence` maps a quantity to its number. `magnitude` ranks findings of one severity (decades).
    `code`, `name` are stamped by the Detector; `because`, `symptoms` by `diagnose`.
    """

    severity: Severity
    says: str
    where: tuple[str, ...] = ()
    evidence: Mapping[str, float | str] = field(default_factory=dict)
    confidence: Confidence = "measured"
    ruled_out: tuple[str, ...] = ()
    try_next: tuple[Advice, ...] = ()
    magnitude: float = 0.0
    steps: tuple[int, int] = (0, 0)
    code: str = ""
    name: str = ""
    because: tuple[str, ...] = ()
    symptoms: tuple[str, ...] = ()


Find = Callable[[Record], Iterator[Finding]]


@dataclass(frozen=True, slots=True)
class Detector:
    """One illness: a stable code, a name, what it needs to have read, and what it explains.

    `needs` are metrics or facts, without one of which the detector is blind. `explains` are the
    codes of the symptoms that this illness causes. `find` is pure; its docstring is the page.
    """

    code: str
    name: str
    needs: tuple[str, ...]
    explains: tuple[str, ...]
    find: Find

    def run(self, record: Record) -> list[Finding]:
        """Return the findings in this record, stamped with code and name."""
        with np.errstate(all="ignore"):  # inf and NaN are readings, see Record
            return [replace(found, code=self.code, name=self.name) for found in self.find(record)]

    def missing(self, record: Record) -> tuple[str, ...]:
        """Return the needs which this record does not meet."""
        return tuple(need for need in self.needs if not record.was_read(need))

    @property
    def page(self) -> str:
        """The finding's page: the docstring of `find`."""
        return inspect.getdoc(self.find) or ""


def detector(
    code: str, name: str, *, needs: tuple[str, ...], explains: tuple[str, ...] = ()
) -> Callable[[Find], Detector]:
    """Make a Detector of a function from Record to Findings."""

    def wrap(find: Find) -> Detector:
        return Detector(code, name, needs, explains, find)

    return wrap
