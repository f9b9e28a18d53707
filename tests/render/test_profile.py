"""The depth profile shows each unit or the mean of neighbours, at any depth and width."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadygrad.core.finding import Severity
from steadygrad.core.record import Record
from steadygrad.render.profile import Axis, grouped, profile
from steadygrad.render.words import UNICODE, shortened

Make = Callable[[list[tuple[str, float, float, float]]], Record]


def drawn(record: Record, marks: dict[str, Severity] | None = None, width: int = 80) -> list[str]:
    return [line.plain for line in profile(record, marks or {}, width, UNICODE)]


def test_without_units_there_is_no_profile(profiled: Make) -> None:
    assert drawn(profiled([])) == []


def test_what_is_level_stands_on_the_line(profiled: Make) -> None:
    _, _, row, _ = drawn(profiled([("fc", 0.0, 0.0, 0.0)]))
    assert row.split() == ["fc", "●", "●", f"{UNICODE.times}1.00"]


def test_what_was_not_read_is_said(profiled: Make) -> None:
    rows = drawn(profiled([("a", math.nan, math.inf, -math.inf), ("b", -math.inf, 0.0, math.inf)]))
    assert all(word in rows[2] for word in ("not read", "broken", f"{UNICODE.times}0"))
    assert all(word in rows[3] for word in ("zero", "●", "broken"))


def test_ten_thousand_units_fit_in_thirty_rows(profiled: Make) -> None:
    deep = profiled([(f"layers.{i}", 0.0, -0.4 * (9999 - i), -0.4) for i in range(10000)])
    rows = drawn(deep)
    assert len(rows) == 33
    assert rows[2].startswith("  layers.0 … 333 ")
    assert "1e-2000" in rows[1]


def test_a_marked_unit_keeps_a_row_of_its_own(profiled: Make) -> None:
    deep = profiled([(f"layers.{i}", 0.0, 0.0, 0.0) for i in range(200)])
    rows = drawn(deep, {"layers.77.dense": Severity.broken})
    (marked,) = [row for row in rows if row.startswith("✗")]
    assert marked.startswith("✗ layers.77 ")


def test_neighbours_in_a_row_are_named_by_their_ends(profiled: Make) -> None:
    rows = drawn(profiled([(str(i), 0.0, 0.0, 0.0) for i in range(90)]))
    assert rows[2].startswith("  0 … 2 ")
    assert rows[-2].startswith("  87 … 89 ")


@given(st.lists(st.booleans(), min_size=1, max_size=300), st.integers(1, 40))
def test_groups_hold_every_place_once_and_in_order(marked: list[bool], most: int) -> None:
    groups = grouped(marked, most)
    assert [place for group in groups for place in group] == list(range(len(marked)))
    assert len(groups) <= most


@given(st.integers(-5000, 0), st.integers(1, 5000), st.integers(11, 60))
def test_labels_stand_over_their_cell(low: int, high: int, cells: int) -> None:
    labels = Axis(low, high, cells).labels()
    assert len(labels) == cells
    assert labels[Axis(low, high, cells).cell(0)] == "1"


@given(st.text("ab.層", max_size=60), st.integers(1, 50))
def test_a_shortened_name_fits(name: str, cells: int) -> None:
    from rich.cells import cell_len

    assert cell_len(shortened(name, cells, UNICODE)) <= cells


@pytest.mark.parametrize(
    ("cells", "short"),
    [
        (40, "encoder.block.stack.layers.3"),
        (20, "encoder…layers.3"),
        (9, "encoder…3"),
        (8, "…3"),
        (1, "…"),
    ],
)
def test_a_name_is_shortened_in_its_middle(cells: int, short: str) -> None:
    assert shortened("encoder.block.stack.layers.3", cells, UNICODE) == short
