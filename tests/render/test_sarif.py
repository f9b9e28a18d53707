"""The SARIF form holds roots as results, and what could not look as notifications."""

from __future__ import annotations

import json as standard
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from steadygrad.core.report import Report
from steadygrad.render.sarif import sarif, script_of


def run(report: Report) -> Any:  # JSON
    (only,) = standard.loads(sarif(report))["runs"]
    return only


@pytest.mark.parametrize("chosen", ["weak", "unread"])
def test_a_report_reads_as_it_did(
    chosen: str, reports: dict[str, Report], golden: Callable[[str, str], None]
) -> None:
    golden(f"{chosen}.sarif", sarif(reports[chosen]))


def test_each_result_points_to_its_rule(report: Report) -> None:
    found = run(report)
    rules = found["tool"]["driver"]["rules"]
    assert [rules[one["ruleIndex"]]["id"] for one in found["results"]] == [
        one.code for one in report.findings
    ]


def test_severities_are_levels(reports: dict[str, Report]) -> None:
    levels = [
        one["level"] for name in ("noted", "crowded") for one in run(reports[name])["results"]
    ]
    assert levels == ["note", "error", "warning"]


def test_layers_are_logical_and_the_script_is_physical(reports: dict[str, Report]) -> None:
    (result,) = run(reports["unread"])["results"]
    (location,) = result["locations"]
    assert location["physicalLocation"]["artifactLocation"] == {"uri": "broken.py"}
    assert location["logicalLocations"][0]["fullyQualifiedName"] == "stem.conv"


def test_a_target_that_is_no_script_has_no_physical_location(reports: dict[str, Report]) -> None:
    (first, _) = run(reports["crowded"])["results"]
    assert list(first["locations"][0]) == ["logicalLocations"]


@pytest.mark.parametrize(
    ("target", "uri"),
    [
        ("my nets/train [1].py:build", "my%20nets/train%20%5B1%5D.py"),
        ("\udcff.py", "%FF.py"),  # a file name that is no text
    ],
)
def test_a_path_becomes_a_uri(target: str, uri: str, reports: dict[str, Report]) -> None:
    (result,) = run(replace(reports["weak"], target=target))["results"]
    assert result["locations"][0]["physicalLocation"]["artifactLocation"] == {"uri": uri}


@pytest.mark.parametrize(
    ("target", "script"),
    [("train.py", "train.py"), ("a/b.py:build", "a/b.py"), ("pkg.mod:build", ""), ("hf:gpt2", "")],
)
def test_a_script_is_told_from_other_targets(target: str, script: str) -> None:
    assert script_of(target) == script


def test_silence_is_not_health(reports: dict[str, Report]) -> None:
    (invocation,) = run(reports["blind"])["invocations"]
    assert len(invocation["toolExecutionNotifications"]) == 2
