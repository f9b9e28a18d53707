"""Judge hand-made wirings: what is broken, what a note, and what needs no word."""

from __future__ import annotations

from typing import Any

import pytest

from steadygrad.core.finding import Finding, Severity
from steadygrad.core.record import record_of
from steadygrad.detectors.wiring import no_gradient, not_in_optimizer

HEALTHY: dict[str, Any] = {
    "has_loss": True,
    "has_optimizer": True,
    "parameters": 6,
    "trainable": 6,
    "trainable_share": 1.0,
    "reached": 6,
    "unregistered": [],
    "unreached": [],
    "first_module": "stem",
    "steps": [],
    "foreign": [],
}
CUT = {
    "name": "stem.weight",
    "module": "stem",
    "elements": 64,
    "held": True,
    "training": True,
    "doubled": False,
    "why": "cut",
    "op": "detach",
    "at": "model.py:7",
    "inside": "",
}


def paths(**changes: Any) -> list[Finding]:
    return no_gradient.run(record_of([], {"wiring": {**HEALTHY, **changes}}))


def row(
    name: str, held: int, total: int = 2, fresh: bool = False, size: int = 10
) -> dict[str, Any]:
    missing = size * (total - held) // total
    return {
        "name": name,
        "held": held,
        "total": total,
        "elements": size,
        "missing": missing,
        "training": True,
        "fresh": fresh,
    }


def omitted(*rows: dict[str, Any], **changes: Any) -> list[Finding]:
    facts = {**HEALTHY, "steps": list(rows), **changes}
    return not_in_optimizer.run(record_of([], {"wiring": facts}))


def test_a_whole_wiring_needs_no_word() -> None:
    assert paths() == []
    assert omitted(row("stem", 2), row("head", 2)) == []


def test_a_model_without_parameters_needs_no_word() -> None:
    assert paths(parameters=0, trainable=0, reached=0) == []


def test_a_cut_names_module_and_line() -> None:
    (found,) = paths(unreached=[CUT], reached=5)
    assert found.severity is Severity.broken
    assert found.where == ("stem",)
    assert "model.py:7" in found.says


@pytest.mark.parametrize(
    "change", [{"held": False}, {"training": False}, {"doubled": True}], ids=str
)
def test_a_cut_that_somebody_may_have_meant_is_a_note(change: dict[str, bool]) -> None:
    (found,) = paths(unreached=[{**CUT, **change}], reached=5)
    assert found.severity is Severity.note


def test_a_no_grad_block_is_at_most_a_risk() -> None:
    (found,) = paths(unreached=[{**CUT, "op": "no_grad"}], reached=5)
    assert found.severity is Severity.risk


def test_without_an_optimizer_a_cut_must_take_the_first_layer_inside_of_the_model() -> None:
    inner = {**CUT, "module": "middle"}
    outside = {**CUT, "inside": None}
    severities = [
        paths(unreached=[one], reached=5, has_optimizer=False)[0].severity
        for one in (CUT, inner, outside)
    ]
    assert severities == [Severity.broken, Severity.note, Severity.note]


def test_one_finding_for_each_place_of_a_cut() -> None:
    other = {**CUT, "at": "model.py:99", "module": "middle"}
    assert len(paths(unreached=[CUT, CUT, other], reached=3)) == 2


def test_nothing_reached_is_broken_whatever_else_is_known() -> None:
    (found,) = paths(reached=0, has_optimizer=False, unreached=[CUT])
    assert found.severity is Severity.broken


@pytest.mark.parametrize(
    ("rows", "severity"),
    [
        ([row("a", 2), row("b", 1), row("c", 2)], Severity.risk),
        ([row("a", 2), row("b", 0), row("c", 2)], Severity.risk),
        ([row("a", 2), row("b", 2), row("c", 0)], Severity.risk),
        ([row("a.0", 0), row("a.1", 0), row("head", 2)], Severity.note),
        ([row("a.0", 0, fresh=True), row("a.1", 0, fresh=True), row("head", 2)], Severity.risk),
        ([row("g.0", 2), row("g.1", 2), row("d.0", 0), row("d.1", 0)], Severity.note),
        ([row("e.0", 2), row("m.0", 0), row("m.1", 0), row("d.0", 2, size=20)], Severity.note),
        ([row("a", 0), row("b", 0)], Severity.broken),
    ],
)
def test_an_omission_is_judged_by_its_place(rows: list[dict[str, Any]], severity: Severity) -> None:
    (found,) = omitted(*rows)
    assert found.severity is severity


def test_foreign_tensors_in_place_of_missing_ones_are_broken() -> None:
    (found,) = omitted(row("stem", 2), row("head", 0), foreign=[[4, 8]])
    assert found.severity is Severity.broken
    assert found.where == ("head",)


def test_foreign_tensors_alone_need_no_word() -> None:
    assert omitted(row("stem", 2), foreign=[[4, 8]]) == []


def test_without_an_optimizer_nothing_is_missing_from_it() -> None:
    assert omitted(row("stem", 0), has_optimizer=False) == []


def test_a_loss_that_goes_around_the_stepped_network_is_one_finding() -> None:
    bypassed = {"network": "G", "tensors": 4, "at": "gan.py:7"}
    steps = [row("0", 0), row("2", 0)]
    facts = {
        "wiring": {**HEALTHY, "steps": steps, "foreign": [[4, 32]]},
        "script": {"bypassed": bypassed},
    }
    (found,) = no_gradient.run(record_of([], facts))
    assert (found.severity, found.where) == (Severity.broken, ("G",))
    assert "detached at gan.py:7" in found.says
    assert not_in_optimizer.run(record_of([], facts)) == []
