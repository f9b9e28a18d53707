"""Rows of many steps become one Record, whatever they lack."""

from __future__ import annotations

import numpy as np

from steadygrad.core.record import Site
from steadygrad.core.steps import Row, record_of_rows

SITES = (Site("optimizer", "step"), Site("a.weight", "weight"), Site("b.weight", "weight"))


def test_rows_are_joined_by_role() -> None:
    rows = [_row(0, loss=[2.0], grad=[1.0, 3.0]), _row(5, loss=[1.0], grad=[0.5])]

    record = record_of_rows(SITES, rows, {})

    assert record.steps.tolist() == [0, 5]
    assert record.series("loss", "step").tolist() == [[2.0], [1.0]]
    np.testing.assert_array_equal(record.series("grad", "weight"), [[1.0, 3.0], [0.5, np.nan]])


def test_a_metric_that_was_never_read_is_nan_everywhere() -> None:
    record = record_of_rows(SITES, [_row(0, loss=[2.0])], {})

    assert np.isnan(record.series("update", "weight")).all()
    assert record.series("update", "weight").shape == (1, 2)
    assert not record.was_read("update")


def test_no_rows_are_an_empty_record() -> None:
    assert record_of_rows(SITES, [], {}).values.shape == (0, 3, 0)


def _row(step: int, **read: list[float]) -> Row:
    return Row(step, 0.0, {name: np.array(values, np.float32) for name, values in read.items()})
