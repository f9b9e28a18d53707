"""Records made by hand, as a check of a plain network would have left them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from steadygrad.core.record import Record, Role, Site, record_of
from steadygrad.core.steps import METRICS

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


Training = Callable[..., Record]
CONSTANT = {
    "loss": 2.24,
    "name": "cross_entropy",
    "classes": 10,
    "labels_entropy": 2.24,
    "count": 64,
}
SAMPLED = ("weight", "update", "moved", "rms", "max", "dead", "saturated", "logit")


@pytest.fixture(scope="session")
def training() -> Training:
    """Build the Record of many steps of a chain of linear layers and activations."""
    return _training


def _training(
    steps: int = 1000,
    *,
    act: str = "ReLU",
    layers: int = 4,
    facts: Mapping[str, Any] | None = None,
    **edits: Any,
) -> Record:
    """Layer i is `layers.{i}`, its activation `acts.{i}`; the loss falls from 2.4 to 0.1.

    An edit is a metric's readings: a number, [sites], [steps, 1] or [steps, sites]; what is sampled
    is NaN outside of the sampled steps.
    """
    sites = _training_sites(layers, act)
    number = np.arange(1, steps + 1)
    norm = np.exp(0.1 * np.random.default_rng(0).normal(size=(steps, 1)))
    readings: dict[str, Any] = {
        "loss": _learning(steps)[:, None], "lr": 0.1, "norm": norm,
        "scale": 1.0, "skipped": 0.0, "backwards": 1.0, "grad": 0.1, "weight": 8.0, "update": 8e-3,
        "moved": 1.0, "rms": 1.0, "max": 3.0, "dead": 0.1, "saturated": 0.1, "logit": 5.0, **edits,
    }  # fmt: skip
    values = np.full((steps, len(sites), len(readings)), np.nan)
    sampled = np.isin(number, (1, 2, 3, 5, 10)) | (number % 20 == 0)
    for place, (metric, given) in enumerate(readings.items()):
        mine = [index for index, site in enumerate(sites) if site.role == METRICS[metric]]
        values[:, mine, place] = given
        if metric in SAMPLED:
            values[~sampled, :, place] = np.nan
    known = {"optimizers": [{"name": "optimizer", "type": "SGD", "dtypes": ["torch.float32"]}]}
    return Record(
        tuple(sites), tuple(readings), number, values.astype(np.float32), {**known, **(facts or {})}
    )


def _training_sites(layers: int, act: str) -> list[Site]:
    weights = [
        Site(
            f"layers.{i}.{kind}", "weight", i, "Linear", 64, (64, 64) if kind == "weight" else (64,)
        )
        for i in range(layers)
        for kind in ("weight", "bias")
    ]
    outputs = [
        Site(f"{name}.{i}", "output", 2 * i + (name == "acts"), kind)
        for i in range(layers)
        for name, kind in (("layers", "Linear"), ("acts", act))
    ][:-1]
    return [Site("optimizer", "step"), *weights, *outputs]


@pytest.fixture(scope="session")
def stuck() -> dict[str, Any]:
    """Edits and facts of a run whose loss stays at that of a constant prediction."""
    return {"loss": _standing(1000)[:, None], "facts": {"constant": CONSTANT}}


def _learning(steps: int) -> NDArray[np.float64]:
    noise = np.random.default_rng(1).normal(size=steps)
    return 0.1 + 2.3 * np.exp(-np.arange(steps) / 200) + 0.02 * noise


def _standing(steps: int, level: float = 2.31) -> NDArray[np.float64]:
    return level + 0.02 * np.random.default_rng(2).normal(size=steps)
