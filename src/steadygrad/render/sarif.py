"""Render a report as SARIF 2.1.0, which code hosts show beside the source."""

from __future__ import annotations

import json as standard
import re
from pathlib import PurePath
from typing import Any
from urllib.parse import quote

from steadygrad import __version__
from steadygrad.core.finding import Finding, Severity
from steadygrad.core.report import Report
from steadygrad.render.json import numbers

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
LEVELS = {Severity.note: "note", Severity.risk: "warning", Severity.broken: "error"}

Json = dict[str, Any]  # strings, numbers, lists and dicts thereof


def sarif(report: Report) -> str:
    """Render the root findings as results, their codes as rules, and blind checks as notifications.

    Layers are logical locations. The physical location is the target's script, from its first line,
    where the target is one; otherwise there is none.
    """
    log = {"$schema": SCHEMA, "version": "2.1.0", "runs": [_run(report)]}
    return standard.dumps(log, indent=2, allow_nan=False) + "\n"


def _run(report: Report) -> Json:
    codes = {one.code: one.name for one in report.findings}
    index = {code: number for number, code in enumerate(codes)}
    driver = {
        "name": "steadygrad",
        "version": __version__,
        "rules": [_rule(code, name) for code, name in codes.items()],
    }
    return {
        "tool": {"driver": driver},
        "invocations": [_invocation(report)],
        "results": [_result(one, index[one.code], report) for one in report.findings],
    }


def _rule(code: str, name: str) -> Json:
    return {
        "id": code,
        "name": name,
        "shortDescription": {"text": name.replace("-", " ")},
        "help": {"text": f"steadygrad explain {code}"},
    }


def _invocation(report: Report) -> Json:
    unseen = [
        {"level": "note", "message": {"text": f"{one.code} {one.name} could not look: {one.why}"}}
        for one in report.blind
    ]
    return {"executionSuccessful": True, "toolExecutionNotifications": unseen}


def _result(found: Finding, rule: int, report: Report) -> Json:
    symptoms = [one for one in report.folded if found.code in one.because]
    return {
        "ruleId": found.code,
        "ruleIndex": rule,
        "level": LEVELS[found.severity],
        "message": {"text": found.says},
        "locations": _locations(found, report.target),
        "properties": {
            "confidence": found.confidence,
            "evidence": numbers(found.evidence),
            "symptoms": [f"{one.code} {one.name}: {one.says}" for one in symptoms],
            "ruledOut": list(found.ruled_out),
            "try": [{"remedy": one.remedy, "patch": one.patch} for one in found.try_next],
        },
    }


def _locations(found: Finding, target: str) -> list[Json]:
    """One location: the script, where there is one, with all the layers in it."""
    location: Json = {}
    if script := script_of(target):
        artifact = {"uri": _uri(script)}
        location["physicalLocation"] = {"artifactLocation": artifact, "region": {"startLine": 1}}
    if found.where:
        location["logicalLocations"] = [
            {"name": name.rpartition(".")[2], "fullyQualifiedName": name, "kind": "object"}
            for name in found.where
        ]
    return [location] if location else []


def script_of(target: str) -> str:
    """Return the script of a target such as `train.py` or `nets.py:build`; '' when it has none."""
    found = re.fullmatch(r"(.+\.pyw?)(:\w+)?", target)
    return found[1] if found else ""


def _uri(script: str) -> str:
    path = PurePath(script)
    return path.as_uri() if path.is_absolute() else quote(path.as_posix(), errors="surrogateescape")
