"""Check healthy networks, ours and other libraries', on several seeds: no alarm may ring."""

from __future__ import annotations

import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import steadygrad as sg
from bench.library import LIBRARY
from bench.patients import in_short
from bench.table import Row, markdown, publish
from steadygrad.core.finding import Finding, Severity
from steadygrad.core.report import Report
from steadygrad.testing import HEALTHY, PATIENTS, Case, Patient

SEEDS = (0, 1, 2, 3, 4)


@dataclass(frozen=True, slots=True)
class Visit:
    """What check said of one healthy network: alarms (above note), notes, or what it raised."""

    group: str
    name: str
    way: str
    seed: int
    alarms: tuple[Finding, ...] = ()
    notes: tuple[Finding, ...] = ()
    raised: str = ""
    seconds: float = 0.0


def run(seeds: Sequence[int] = SEEDS) -> None:
    """Visit everybody; write zoo.md."""
    warnings.simplefilter("ignore")
    visits = [
        *(v for p in HEALTHY for s in seeds for v in _visits("synthetic", p, s)),
        *(v for p in LIBRARY for s in seeds for v in _visits("libraries", p, s)),
        *(v for p in PATIENTS for s in seeds for v in _twins(p, s)),
    ]
    parts = [_totals(visits), "## Alarms\n\n" + _alarms(visits), "## Notes\n\n" + _notes(visits)]
    publish("zoo", "Healthy networks: false alarms", parts)


def _visits(group: str, patient: Patient, seed: int) -> Iterator[Visit]:
    yield _visit(group, patient.name, "all", seed, patient.build(seed))
    case = patient.build(seed)
    yield _visit(group, patient.name, "inputs only", seed, Case(case.model, case.inputs))


def _twins(patient: Patient, seed: int) -> Iterator[Visit]:
    case = patient.build_twin(seed)
    if case is not None:
        yield _visit("twins of the sick", patient.name, "all", seed, case)


def _visit(group: str, name: str, way: str, seed: int, case: Case) -> Visit:
    begin = time.perf_counter()
    try:
        report = sg.check(case.model, **case.arguments())
    except Exception as error:
        return Visit(group, name, way, seed, raised=f"{type(error).__name__}: {error}"[:200])
    seconds = time.perf_counter() - begin
    alarms = tuple(one for one in _everything(report) if one.severity > Severity.note)
    notes = tuple(one for one in _everything(report) if one.severity == Severity.note)
    return Visit(group, name, way, seed, alarms, notes, seconds=seconds)


def _everything(report: Report) -> tuple[Finding, ...]:
    return (*report.findings, *report.folded)


def _totals(visits: Sequence[Visit]) -> str:
    groups: dict[str, list[Visit]] = defaultdict(list)
    for visit in visits:
        groups[visit.group].append(visit)
    rows: list[Row] = [
        (
            group,
            len({v.name for v in members}),
            len(members),
            sum(bool(v.alarms) for v in members),
            sum(bool(v.notes) for v in members),
            sum(bool(v.raised) for v in members),
            sum(v.seconds for v in members) / len(members),
        )
        for group, members in groups.items()
    ]
    header = ("group", "networks", "checks", "with an alarm", "with a note", "raised", "seconds")
    return markdown(header, rows) + "\n\nAsked: no alarm."


def _alarms(visits: Sequence[Visit]) -> str:
    rows: dict[tuple[str, str, str, str], list[int]] = defaultdict(list)
    for v in visits:
        for one in v.alarms:
            rows[v.name, v.way, in_short(one), one.says[:160]].append(v.seed)
        if v.raised:
            rows[v.name, v.way, "raised", v.raised].append(v.seed)
    table = [(*key, ",".join(map(str, seeds))) for key, seeds in rows.items()]
    return markdown(("network", "given", "alarm", "says", "seeds"), table)


def _notes(visits: Sequence[Visit]) -> str:
    rows: dict[tuple[str, str], int] = defaultdict(int)
    for v in visits:
        for one in v.notes:
            rows[v.name, one.code] += 1
    return markdown(("network", "note", "checks"), [(*key, n) for key, n in rows.items()])
