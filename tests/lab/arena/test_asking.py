"""What is asked for: names, numbers, and sentences where they make no sense."""

from __future__ import annotations

from pathlib import Path

import pytest

from steadygrad.lab.arena.asking import asked, check_grid, check_numbers, fitting
from steadygrad.lab.arena.board import Board
from steadygrad.lab.arena.command import Options, planned, run
from steadygrad.lab.arena.grid import Grid, Schedule
from steadygrad.lab.arena.timing import estimated, lasting

pytest.importorskip("sklearn")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"inits": "levle"}, "expected an init, .* got levle: did you mean level?"),
        ({"activations": "gelo"}, "did you mean gelu?"),
        ({"optimizers": "sdg"}, "did you mean sgd?"),
        ({"norms": "zzz"}, "expected a norm, .*: known are none, batch, layer, rms"),
        ({"inits": "none.py:init"}, "none.py does not exist"),
        ({"depths": "10,x"}, "expected --depths as numbers, such as 1,2,3, got 10,x"),
        ({"depths": "0"}, "expected --depths of 1 or more, got 0"),
        ({"depths": ""}, "expected --depths with one value or more, .* got none"),
        ({"inits": "he,he"}, "each once, got he,he"),
        ({"gains": "-1"}, "expected positive --gains"),
        ({"gains": "nan"}, "expected positive --gains"),
        ({"widths": "66", "architectures": "pre-ln"}, "that 4 heads divide .* got 66"),
    ],
)
def test_what_makes_no_sense_is_said(given: dict[str, str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check_grid(asked("digits", given)[0])


def test_a_function_that_a_file_lacks_is_told_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def init(model, loss): ...\nvalue = 3\n")
    with pytest.raises(ValueError, match=r"define a function intt, it does not: did you mean init"):
        check_grid(asked("digits", {"inits": f"{tmp_path}/mine.py:intt"})[0])
    with pytest.raises(ValueError, match="define a function value"):
        check_grid(asked("digits", {"inits": f"{tmp_path}/mine.py:value"})[0])


def test_a_task_says_what_it_does_not_take(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def setup(width=8): ...\n")
    task = f"{tmp_path}/mine.py:setup"
    with pytest.raises(ValueError, match="to take `depth`, for --depths"):
        asked(task, {"depths": "2,4"})
    with pytest.raises(ValueError, match="makes its own model"):
        asked(task, {"architectures": "plain"})
    with pytest.raises(ValueError, match=r"make it in .* itself"):
        check_grid(asked(task, {"activations": f"{task}"})[0])
    assert asked(task, {"widths": "4,8"})[0].widths == [4, 8]


@pytest.mark.parametrize(
    ("schedule", "rates", "says"),
    [
        (Schedule(steps=5), (), "--steps of 40 or more, got 5"),
        (Schedule(seeds=1), (), "--seeds of 2 or more, got 1"),
        (Schedule(keep=0.0), (), "--keep above 0"),
        (Schedule(), (0.1, -0.1), "positive --lr"),
    ],
)
def test_numbers_out_of_range_are_said(schedule: Schedule, rates, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check_numbers(schedule, rates, 1)


def test_norms_are_not_multiplied_with_transformers() -> None:
    grid = Grid((1,), (8,), architectures=("plain", "pre-ln"), norms=("none", "layer"))
    named = [(c.contestant.architecture, c.contestant.norm) for c in fitting(grid)]
    assert set(named) == {("plain", "none"), ("plain", "layer"), ("pre-ln", "none")}


def test_a_long_grid_says_its_time_and_asks(tmp_path: Path) -> None:
    grid = Grid(depths=(2,), widths=(8,), gains=[1 + n / 1e5 for n in range(50_000)])
    with pytest.raises(ValueError, match=r"1200000 cells would take about \d+ (days|hours).*--yes"):
        run(Options(grid, directory=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_times_are_said_in_their_largest_unit() -> None:
    assert [lasting(s) for s in (5, 300, 8000, 1e6)] == [
        "5 seconds",
        "5 minutes",
        "2 hours",
        "12 days",
    ]


def test_work_and_time_are_estimated_for_all_rounds() -> None:
    grid = Grid((2, 4), (8,), activations=("relu",), inits=("he",), optimizers=("sgd",))
    board = Board("digits", Schedule(40, 2, 1.0), grid.cells, 2.3)
    assert planned(board) == 6 * (5 * 10 + 2 * 20 + 2 * 40)
    assert 0 < estimated(grid, Schedule(40, 2)) < 60
