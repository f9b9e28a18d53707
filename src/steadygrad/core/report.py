"""A Report says what was found, what is clear, and what could not be seen: causes first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from steadygrad.core.finding import Detector, Finding, Severity
from steadygrad.core.record import Record
from steadygrad.core.trial import Cure

PLACES = {"", "data", "target", "loss", "optimizer", "lr"}  # where many faults may be at once
Verdict = Literal["healthy", "findings", "blind"]


@dataclass(frozen=True, slots=True)
class Blind:
    """A detector that could not look, and why."""

    code: str
    name: str
    why: str


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of a check or a run; renderers read it, nothing writes to it.

    `findings` are the roots, worst first; what they explain is folded into their `symptoms`, whose
    findings stand in `folded`. `cost` holds seconds and the ratio to one plain step; `cure` is what
    was tried, where anything was.
    """

    target: str
    record: Record
    findings: tuple[Finding, ...]
    folded: tuple[Finding, ...] = ()
    clear: tuple[str, ...] = ()
    blind: tuple[Blind, ...] = ()
    cost: Mapping[str, float] = field(default_factory=dict)
    cure: Cure | None = None

    @property
    def verdict(self) -> Verdict:
        """Whether something above a note was found, nothing was, or nothing could be seen."""
        if self.worst > Severity.note:
            return "findings"
        return "healthy" if self.clear or self.findings else "blind"

    @property
    def worst(self) -> Severity:
        """The highest severity among the findings; a note when there are none."""
        return max((found.severity for found in self.findings), default=Severity.note)

    def __str__(self) -> str:
        """Give the verdict and one line per root finding; `render` draws the whole report."""
        lines = [f"{self.verdict}: {self.target}".rstrip(": ")]
        lines += [f"{found.code} {found.name}: {found.says}" for found in self.findings]
        return "\n".join(lines)


def diagnose(
    record: Record,
    detectors: Sequence[Detector],
    *,
    target: str = "",
    cost: Mapping[str, float] | None = None,
    found: Sequence[Finding] = (),
    also: Sequence[Detector] = (),
) -> Report:
    """Run every detector and fold each symptom under its cause.

    A detector ends as found, clear, or blind; `found` are findings made elsewhere, by the
    detectors `also`. A finding is a symptom when another one explains its code; what is only
    possible explains nothing. Findings of one code that share a layer are one fault, told by the
    worst, unless they name different lines. A cause is as severe as the worst that it explains.
    Roots are ordered by severity, then by the detectors' order (the order of suspicion), then by
    magnitude.
    """
    every = list(found)
    clear: list[str] = []
    blind: list[Blind] = []
    for one in detectors:
        if missing := one.missing(record):
            blind.append(Blind(one.code, one.name, _why(record, missing)))
            continue
        try:
            mine = one.run(record)
        except Exception as error:  # a fault of one detector must not silence the others
            blind.append(Blind(one.code, one.name, f"it failed: {type(error).__name__}: {error}"))
            continue
        every += mine
        if not mine:
            clear.append(one.code)
    clear = [code for code in clear if code not in {one.code for one in every}]
    roots, folded = fold(every, (*also, *detectors))
    return Report(target, record, roots, folded, tuple(clear), tuple(blind), cost or {})


def fold(
    found: Sequence[Finding], detectors: Sequence[Detector]
) -> tuple[tuple[Finding, ...], tuple[Finding, ...]]:
    """Split findings into roots and symptoms; each root lists the codes folded under it."""
    suspicion: dict[str, int] = {}
    for place, one in enumerate(detectors):
        suspicion.setdefault(one.code, place)
    explains: dict[str, tuple[str, ...]] = {}
    for one in detectors:  # several may share a code
        explains[one.code] = (*explains.get(one.code, ()), *one.explains)

    def by_suspicion(one: Finding) -> tuple[float, float, float]:
        return -one.severity, suspicion[one.code], -one.magnitude

    ranked = sorted(found, key=by_suspicion)
    cause = {place: _cause_of(place, ranked, explains) for place in range(len(ranked))}
    cause |= _said_before(ranked, [place for place, parent in cause.items() if parent is None])
    roots = [place for place, parent in cause.items() if parent is None]
    origin = {place: _origin(place, cause) for place in cause}
    finished = [_with_symptoms(root, ranked, origin) for root in roots]
    finished.sort(key=by_suspicion)
    folded = tuple(
        replace(ranked[place], because=(ranked[origin[place]].code,))
        for place, parent in cause.items()
        if parent is not None
    )
    return tuple(finished), folded


def _with_symptoms(root: int, ranked: Sequence[Finding], origin: Mapping[int, int]) -> Finding:
    """Give a root the codes folded under it, and the severity of the worst of them."""
    mine = [ranked[place] for place, first in origin.items() if first == root]
    code, where = ranked[root].code, ranked[root].where
    codes = tuple(dict.fromkeys(one.code for one in mine if one.code != code))
    same = (name for one in mine if one.code == code for name in one.where)
    worst = max(one.severity for one in mine)
    where = tuple(dict.fromkeys((*where, *same)))
    return replace(ranked[root], because=(code,), symptoms=codes, severity=worst, where=where)


def _said_before(ranked: Sequence[Finding], roots: Sequence[int]) -> dict[int, int]:
    """Places of roots that say of the same layers what a worse one of their code says: its place.

    A chain of findings, each of which shares a layer with the next, is one fault.
    """
    groups: list[list[int]] = []
    for place in roots:
        joined = [g for g in groups if any(_one_fault(ranked[place], ranked[p]) for p in g)]
        groups = [g for g in groups if g not in joined]
        groups.append(sorted([place, *(p for g in joined for p in g)]))
    return {place: group[0] for group in groups for place in group[1:]}


def _one_fault(one: Finding, other: Finding) -> bool:
    layers = {*one.where} & {*other.where} - PLACES
    lines = one.evidence.get("line") != other.evidence.get("line")
    return one.code == other.code and bool(layers) and not lines


def _cause_of(
    place: int, ranked: Sequence[Finding], explains: Mapping[str, tuple[str, ...]]
) -> int | None:
    """Place of the first finding that explains this one."""
    code = ranked[place].code
    for other, candidate in enumerate(ranked):
        if candidate.confidence != "possible" and code in explains.get(candidate.code, ()):
            return other
    return None


def _origin(place: int, cause: Mapping[int, int | None]) -> int:
    """Follow causes to the root; detectors' `explains` has no cycles (a test says so)."""
    parent = cause[place]
    return place if parent is None else _origin(parent, cause)


def _why(record: Record, missing: Sequence[str]) -> str:
    """Return the probe's own words for the first missing need, or the plain fact."""
    reasons = record.facts.get("blind", {})
    return str(reasons.get(missing[0], f"{missing[0]} was not read"))
