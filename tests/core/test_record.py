"""A Record holds readings: NaN is not read, inf is broken, the rest is never lost in float32."""

from __future__ import annotations

import math

import numpy as np
import pytest

from steadygrad.core.record import Record, Site, record_of

UNITS = [(Site(f"layers.{i}", "unit", i), {"gain": float(i)}) for i in range(3)]
WEIGHT = (Site("layers.0", "weight"), {"weight_gain": -0.5})


def test_what_is_absent_reads_nan() -> None:
    record = record_of([*UNITS, WEIGHT])
    assert np.isnan(record.read("weight_gain", "unit")).all()
    assert np.isnan(record.read("gain", "weight")).all()


def test_readings_come_back_by_role_in_recorded_order() -> None:
    record = record_of([UNITS[2], WEIGHT, UNITS[0], UNITS[1]])
    assert record.read("gain", "unit").tolist() == [2.0, 0.0, 1.0]
    assert [site.name for site in record.sites_of("unit")] == ["layers.2", "layers.0", "layers.1"]
    assert record.read("weight_gain", "weight").tolist() == [-0.5]


def test_a_role_without_sites_reads_nothing() -> None:
    record = record_of(UNITS)
    assert record.read("gain", "time").shape == (0,)
    assert record.sites_of("time") == []


def test_a_metric_that_nobody_read_is_nan_at_every_site() -> None:
    assert np.isnan(record_of(UNITS).read("rms", "unit")).tolist() == [True] * 3


def test_an_empty_record_reads_nothing() -> None:
    record = record_of([])
    assert record.read("gain", "unit").shape == (0,)
    assert not record.was_read("gain")


def test_the_last_step_is_read() -> None:
    values = np.array([[[1.0]], [[2.0]]], dtype=np.float32)
    record = Record((Site("a", "unit"),), ("gain",), np.array([0, 5]), values)
    assert record.read("gain", "unit").tolist() == [2.0]


def test_values_of_another_shape_are_refused_with_both_shapes() -> None:
    values = np.zeros((3, 2), np.float32)
    sites = (Site("a", "unit"), Site("b", "unit"))
    with pytest.raises(ValueError, match=r"\[3, 2, 1\], got \[3, 2\]"):
        Record(sites, ("gain",), np.arange(3), values)


def test_only_a_broken_tensor_reads_inf() -> None:
    huge, broken, dead = 1e300, math.inf, -math.inf
    sites = [Site(name, "unit") for name in "abc"]
    rows = [(s, {"gain": v}) for s, v in zip(sites, (huge, broken, dead), strict=True)]
    read = record_of(rows).read("gain", "unit")
    assert np.isfinite(read[0])
    assert read[1:].tolist() == [math.inf, -math.inf]


def test_a_metric_was_read_when_one_site_has_it() -> None:
    record = record_of([*UNITS, WEIGHT])
    assert record.was_read("weight_gain")
    assert not record.was_read("rms")


def test_a_metric_that_is_nan_everywhere_was_not_read() -> None:
    assert not record_of([(Site("a", "unit"), {"gain": math.nan})]).was_read("gain")


@pytest.mark.parametrize(("value", "known"), [({}, True), (0, True), (False, True), (None, False)])
def test_a_fact_is_known_unless_it_is_none(value: object, known: bool) -> None:
    assert record_of(UNITS, {"flow": value}).was_read("flow") is known
