"""Judge hand-made facts about initial values."""

from __future__ import annotations

from typing import Any

from steadygrad.core.finding import Finding, Severity
from steadygrad.core.record import record_of
from steadygrad.detectors.values import cloned_init, symmetric_init, uninitialised_memory

NOTHING: dict[str, list[Any]] = {"stuck": [], "copies": [], "garbage": []}


def memory(builds: dict[str, list[str]] | None = None, **changes: list[str]) -> list[Finding]:
    facts = {"values": {**NOTHING, **changes}, "builds": builds}
    return uninitialised_memory.run(record_of([], facts))


def test_nothing_found_needs_no_word() -> None:
    record = record_of([], {"values": NOTHING, "clones": []})
    assert not [*symmetric_init.run(record), *uninitialised_memory.run(record)]
    assert not cloned_init.run(record)


def test_stuck_weights_are_broken_and_named_by_module() -> None:
    stuck = [{"name": "a.weight", "zero": True}, {"name": "b.weight", "zero": True}]
    (found,) = symmetric_init.run(record_of([], {"values": {**NOTHING, "stuck": stuck}}))
    assert found.severity is Severity.broken
    assert found.where == ("a", "b")
    assert "zero" in found.says


def test_garbage_is_a_risk_and_certain_when_two_builds_differ() -> None:
    (alone,) = memory(garbage=["a.weight"])
    (certain,) = memory({"differing": ["a.weight"]}, garbage=["a.weight"])
    assert [one.severity for one in (alone, certain)] == [Severity.risk, Severity.broken]
    assert certain.where == ("a",)


def test_a_nan_alone_does_not_tell_where_it_came_from() -> None:
    assert memory(broken=["a.weight"]) == []


def test_builds_that_only_differ_are_a_note() -> None:
    (found,) = memory({"differing": ["a.weight"]})
    assert found.severity is Severity.note


def test_filled_memory_is_broken() -> None:
    (found,) = memory({"differing": [], "filled": ["a.weight"]})
    assert found.severity is Severity.broken


def test_clones_are_a_note() -> None:
    (found,) = cloned_init.run(record_of([], {"clones": [["a.weight", "b.weight"]]}))
    assert found.severity is Severity.note
    assert found.where == ("a", "b")


def test_copies_that_part_are_a_risk_while_the_loss_stands() -> None:
    copies = {"values": {**NOTHING, "copies": ["a.weight", "b.weight"], "matrices": 3}}
    (found,) = symmetric_init.run(record_of([], {**copies, "trial": _trial(2.30, 2.29)}))
    assert found.severity is Severity.risk
    assert found.where == ("a", "b")
    assert not symmetric_init.run(record_of([], {**copies, "trial": _trial(2.30, 1.20)}))
    assert not symmetric_init.run(record_of([], copies))


def _trial(first: float, last: float) -> dict[str, Any]:
    return {"steps": 20, "losses": {"lr": [first, *[last] * 20]}}
