"""Render a report as JSON: one stable format for programs (DESIGN, section 6)."""

from __future__ import annotations

import json as standard
import math
from collections.abc import Mapping
from typing import Any

from steadygrad import __version__
from steadygrad.core.finding import Finding
from steadygrad.core.report import Report
from steadygrad.core.trial import Cure, Trial


def json(report: Report) -> str:
    """Render a report as JSON: ASCII only, and valid whatever the numbers are (see `number`)."""
    return standard.dumps(as_dict(report), indent=2, allow_nan=False) + "\n"


def as_dict(report: Report) -> dict[str, Any]:  # JSON: strings, numbers, lists and dicts thereof
    """Return what `json` writes.

    `findings` are the roots, worst first; `folded` are the symptoms, with their own numbers and,
    in `because`, the code of the root that explains them.
    """
    return {
        "steadygrad": __version__,
        "verdict": report.verdict,
        "target": report.target,
        "findings": [_finding(one) for one in report.findings],
        "folded": [_finding(one) for one in report.folded],
        "clear": list(report.clear),
        "blind": [{"code": one.code, "why": one.why} for one in report.blind],
        "trials": [_trial(one, report.cure) for one in report.cure.trials] if report.cure else [],
        "cost": numbers(report.cost),
        **({} if report.cure is None else {"cure": _cure(report.cure)}),
    }


def _cure(cure: Cure) -> dict[str, Any]:  # JSON, as above
    """What is prescribed, and what its longer run has shown."""
    longer = cure.confirmation
    return {
        "chosen": cure.chosen,
        "patch": "" if cure.prescription is None else cure.prescription.patch,
        "steps": cure.spent,
        "confirmation": None
        if longer is None
        else {
            "steps": longer.steps,
            "seed": longer.seed,
            "before": number(longer.before),
            "after": number(longer.after),
        },
        "said": list(cure.said),
    }


def _trial(one: Trial, cure: Cure) -> dict[str, Any]:  # JSON, as above
    return {
        "remedies": list(one.remedies),
        "seeds": list(one.seeds),
        "steps": one.steps,
        "before": [number(loss) for loss in one.before],
        "after": [number(loss) for loss in one.after],
        "effect": number(one.effect),
        "interval": [number(end) for end in one.interval],
        "verdict": one.verdict,
        "random": one.random,
        "chosen": one is cure.prescription,
        "patch": one.patch,
        "imitates": one.imitates,
        "why": one.why,
    }


def numbers(values: Mapping[str, float | str]) -> dict[str, float | str | None]:
    """Return quantities as JSON can hold them."""
    return {key: number(value) for key, value in values.items()}


def number(value: float | str) -> float | str | None:
    """Return a value that JSON can hold: NaN (not read) as null, infinities as "inf" and "-inf"."""
    if isinstance(value, str):
        return value
    plain = float(value)
    if math.isnan(plain):
        return None
    return plain if math.isfinite(plain) else str(plain)


def _finding(found: Finding) -> dict[str, Any]:  # JSON, as above
    return {
        "code": found.code,
        "name": found.name,
        "severity": found.severity.name,
        "says": found.says,
        "where": list(found.where),
        "steps": [int(step) for step in found.steps],
        "evidence": numbers(found.evidence),
        "because": list(found.because),
        "symptoms": list(found.symptoms),
        "confidence": found.confidence,
        "ruled_out": list(found.ruled_out),
        "try": [{"remedy": one.remedy, "patch": one.patch} for one in found.try_next],
    }
