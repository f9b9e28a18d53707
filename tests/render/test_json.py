"""The JSON form is stable and valid whatever the numbers are."""

from __future__ import annotations

import json as standard
import math
from collections.abc import Callable
from typing import NoReturn

from steadygrad.core.report import Report
from steadygrad.render.json import as_dict, json, number


def refuse(constant: str) -> NoReturn:
    raise AssertionError(f"{constant} is no JSON")


def test_a_report_reads_as_it_did(
    name: str, report: Report, golden: Callable[[str, str], None]
) -> None:
    golden(f"{name}.json", json(report))


def test_json_is_valid_and_says_what_the_dict_says(report: Report) -> None:
    assert standard.loads(json(report), parse_constant=refuse) == as_dict(report)


def test_the_keys_are_those_of_the_design(reports: dict[str, Report]) -> None:
    found = as_dict(reports["weak"])
    assert list(found) == [
        *("steadygrad", "verdict", "target", "findings", "folded"),
        *("clear", "blind", "trials", "cost"),
    ]
    assert list(found["findings"][0]) == [
        *("code", "name", "severity", "says", "where", "steps", "evidence", "because"),
        *("symptoms", "confidence", "ruled_out", "try"),
    ]


def test_a_symptom_keeps_its_numbers(reports: dict[str, Report]) -> None:
    (folded,) = as_dict(reports["weak"])["folded"]
    assert (folded["code"], folded["because"]) == ("G102", ["G201"])
    assert folded["evidence"] == {"total_decades": -11.8}


def test_not_read_is_null_and_infinite_a_word() -> None:
    values = [number(one) for one in (math.nan, math.inf, -math.inf, 1.5, "dead")]
    assert values == [None, "inf", "-inf", 1.5, "dead"]
