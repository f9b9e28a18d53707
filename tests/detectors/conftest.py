"""Records made by hand, as a check of a plain network would have left them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from steadygrad.core.record import Record, Role, Site, record_of

Row = dict[str, float]
Edits = Mapping[int, Row]
Network = Callable[..., Record]


@pytest.fixture
def network() -> Network:
    """Build the Record of a chain of linear layers and ReLUs from its units' gains in decades."""
    return _network


def _network(  # noqa: PLR0913 - one keyword for each part of a record that a test may edit
    gains: Sequence[float],
    *,
    scale: float | None = None,
    slope: float = 0.5,
    act: float | None = None,
    width: int = 256,
    units: Edits | None = None,
    weights: Edits | None = None,
    outputs: Edits | None = None,
    facts: Mapping[str, Any] | None = None,
    **flow: float,
) -> Record:
    """Layer i is `layers.{i}`, its activation `acts.{i}`.

    `scale` is log10 sqrt(mean(W^2) fan_in), what explains the gains unless it is given; `slope` is
    E f'^2 under N(0, 1) and `act` the measured one. `units`, `weights`, `outputs` edit single rows,
    `facts` and `flow` the facts.
    """
    measured = slope if act is None else act
    rows: list[tuple[Site, Row]] = []
    for place, gain in enumerate(gains):
        passed = 0.5 * math.log10(measured)
        made = {"unit": _unit(gain, slope, measured), "output": _output(passed, slope)}
        made["weight"] = _weight(gain - passed if scale is None else scale, width)
        edits = {"unit": units, "weight": weights, "output": outputs}
        for role, row in made.items():
            row |= (edits[role] or {}).get(place, {})
            rows.append((_site(role, place), row))
    rows.sort(key=lambda pair: pair[0].role)
    known = {
        "flow": _flow(gains, width) | flow,
        "feeders": [f"layers.{i}" for i in range(len(gains))],
    }
    return record_of(rows, {**known, **(facts or {})})


def _site(role: Role, place: int) -> Site:
    if role == "output":
        return Site(f"acts.{place}", role, 2 * place + 1, "Relu")
    return Site(f"layers.{place}", role, place if role == "unit" else 2 * place, "Addmm")


def _unit(gain: float, slope: float, measured: float) -> Row:
    passed = 0.5 * math.log10(measured)
    own = gain - passed if math.isfinite(gain) else gain
    return {
        "gain": gain, "gain_weight": own, "gain_act": passed, "joins": 0.0, "log_rms": 0.0,
        "spread": 1.0, "slope": measured, "slope_nominal": slope, "pre_rms": 0.0, "eta": 1.0,
        "ideal": math.log10(2) / 2,
    }  # fmt: skip


def _output(passed: float, slope: float) -> Row:
    return {
        "op_gain": passed, "op_nominal": 0.5 * math.log10(slope), "op_zeros": 0.5,
        "op_zeros_before": 0.0, "op_dead": 0.0,
    }  # fmt: skip


def _weight(scale: float, width: int) -> Row:
    return {
        "weight_gain": scale, "normed": 0.0, "head": 0.0, "width": float(width), "weight_in": 0.0,
        "weight_in_spread": 1.0, "weight_spread": 1.0, "bias_ratio": -2.0, "bias_size": -2.0,
        "feeds_zeros": 0.5, "feeds_dead": 0.0, "feeds_passes": 0.0,
    }  # fmt: skip


def _flow(gains: Sequence[float], width: int) -> dict[str, Any]:
    return {
        "total_decades": sum(gain for gain in gains if math.isfinite(gain)),
        "gsc": 0.0, "nlc": 0.0, "spread_in": 1.0, "spread_out": 1.0, "within_in": math.nan,
        "within_out": math.nan, "out_log_rms": 0.0, "widths": [width] * len(gains),
    }  # fmt: skip
