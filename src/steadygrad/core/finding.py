"""A Finding is a fault with its evidence; a Detector finds one illness in a Record."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import IntEnum
from typing import Any, Literal, get_args

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


ALIASES = {
    "lower-lr": ("default-lr", "sharpness-lr", "lr-x0.1", "lr-x0.01", "lr-x0.3"),
    "higher-lr": ("default-lr", "sharpness-lr", "lr-x100", "lr-x10", "lr-x3"),
    "map-to-0-and-1": ("unit-targets",),
    "soft-choice": ("straight-through",),
    "give-scores": ("cross-entropy", "with-logits"),
    "scale-targets": ("standardise-target",),
    "normalise": ("layer-norm", "batch-norm"),
    "swap-activation": ("selu", "leaky-relu", "gelu"),
    "skip-init": ("zero-branches",),
    "scale-residual": ("depth-scaled-residual",),
    "register-layers": ("register",),
    "add-residual-or-norm": ("add-residual", "layer-norm", "batch-norm"),
    "reinitialise": ("level-init", "kaiming-init", "xavier-init"),
    "draw-weights": ("level-init", "xavier-init"),
    "draw-each-layer": ("level-init", "xavier-init"),
    "update-gate-bias": ("chrono-init",),
    "gated-cell": ("orthogonal-recurrence", "chrono-init"),
    "clamp-exponent": ("safe-exp", "small-head"),
}
"""Advice of findings that goes by other names than the remedies that do it."""


def remedies_of(advice: Advice) -> tuple[str, ...]:
    """The remedies that do what an advice says, by name, the likeliest first."""
    return ALIASES.get(advice.remedy, (advice.remedy,))


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


def as_json(found: Finding) -> dict[str, Any]:
    """A finding as JSON can say it."""
    return {**asdict(found), "severity": found.severity.name}


def from_json(given: object) -> Finding | None:
    """A finding from what `as_json` made of it; None for anything else."""
    try:
        return _from_json(given)
    except (TypeError, ValueError, KeyError, AttributeError):
        return None


def _from_json(given: Any) -> Finding:
    advice = tuple(Advice(str(one["remedy"]), str(one["patch"])) for one in given["try_next"])
    if given["confidence"] not in get_args(Confidence):
        raise ValueError(f"a confidence is one of {get_args(Confidence)}")
    first, last = (int(step) for step in given["steps"])
    return Finding(
        Severity[given["severity"]],
        str(given["says"]),
        _strings(given["where"]),
        {str(k): v if isinstance(v, float) else str(v) for k, v in given["evidence"].items()},
        given["confidence"],
        _strings(given["ruled_out"]),
        advice,
        float(given["magnitude"]),
        (first, last),
        str(given["code"]),
        str(given["name"]),
    )


def _strings(given: Any) -> tuple[str, ...]:
    return tuple(str(one) for one in given)


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
