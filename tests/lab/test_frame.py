"""The lab's frame: what an experiment holds, what is written, what is said when it fails."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from steadygrad.lab import command
from steadygrad.lab.catalogue import EXPERIMENTS
from steadygrad.lab.experiment import (
    Curve,
    Figure,
    Measure,
    Plan,
    Result,
    above,
    below,
    experiment,
    near,
)
from steadygrad.lab.page import page
from steadygrad.lab.running import as_json, earlier, found, measured, table


def of(ours: float):
    @experiment(
        "doe1999", claim="One <is> one", published="1", tolerance="exact", source="Doe 1999"
    )
    def doe1999(plan: Plan) -> Result:
        """Count to one."""
        figure = Figure("x", "y", [Curve("a", range(3), [1.0, math.nan, 3.0])])
        return Result([near("one", ours, 1.0, 0.1)], ("n", "m"), [[1, 2.0]], figure)

    return doe1999


def test_a_measure_is_within_its_bounds_or_not() -> None:
    assert near("a", 1.05, 1.0, 0.1).within
    assert not near("a", 1.2, 1.0, 0.1).within
    assert below("a", -5.0, 1.0).within
    assert not above("a", 0.5, 1.0).within
    assert not Measure("a", math.nan, -math.inf, math.inf).within


def test_a_plan_tells_how_far_it_is() -> None:
    told: list[float] = []
    assert list(Plan(tell=told.append).each("ab")) == ["a", "b"]
    assert told == [0.5, 1.0]
    assert Plan("full").pick(1, 2, 3) == 3


def test_an_unknown_experiment_is_told_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="got he2005: did you mean he2015"):
        found("he2005", EXPERIMENTS)
    with pytest.raises(ValueError, match="`steadygrad lab` lists them"):
        found("zzzz", EXPERIMENTS)


def test_numbers_are_json_even_where_they_are_not_finite() -> None:
    told = as_json(measured(of(1.0), Plan()))
    again = json.loads(json.dumps(told, allow_nan=False))
    assert again["within"] is True
    assert again["figure"]["curves"][0]["y"] == [1.0, "nan", 3.0]


def test_a_table_says_what_is_out() -> None:
    assert "within" in table(measured(of(1.0), Plan()))
    assert "OUT" in table(measured(of(3.0), Plan()))


def test_the_page_escapes_and_counts() -> None:
    written = page([measured(of(1.0), Plan()), measured(of(3.0), Plan())])
    assert "1 of 2 within their tolerance" in written
    assert "One &lt;is&gt; one" in written
    assert "<is>" not in written


def test_what_is_written_is_listed_afterwards(tmp_path: Path, capsys) -> None:
    pytest.importorskip("matplotlib")
    assert command.run("doe1999", tmp_path, False, 0, [of(1.0)]) == 0
    files = {one.name for one in (tmp_path / "doe1999").iterdir()}
    assert files == {"numbers.json", "table.txt", "figure.svg", "figure.png"}
    capsys.readouterr()
    command.show(tmp_path, [of(1.0)])
    assert "one: 1" in capsys.readouterr().out


def test_out_of_tolerance_exits_with_one_and_says_so(tmp_path: Path, capsys) -> None:
    pytest.importorskip("matplotlib")
    assert command.run_all(tmp_path, False, 0, [of(1.0), of(3.0)]) == 1
    captured = capsys.readouterr()
    assert "doe1999 is out of its tolerance (one)" in captured.err
    assert (tmp_path / "index.html").exists()


def test_without_matplotlib_the_numbers_are_kept(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'steadygrad\[lab\]'"):
        command.run("doe1999", tmp_path, False, 0, [of(1.0)])
    assert earlier("doe1999", tmp_path) is not None
    with pytest.raises(ModuleNotFoundError):
        command.run_all(tmp_path, False, 0, [of(1.0), of(2.0)])
    assert "1 of 2 within" in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_a_listing_survives_a_cut_off_file(tmp_path: Path, capsys) -> None:
    (tmp_path / "doe1999").mkdir()
    (tmp_path / "doe1999" / "numbers.json").write_text('{"name": "doe')
    assert command.show(tmp_path, [of(1.0)]) == 0
    assert "not run" in capsys.readouterr().out
