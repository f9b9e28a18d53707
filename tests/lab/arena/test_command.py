"""The command: a small grid from end to end, its files, and the picture."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from steadygrad.cli import app
from steadygrad.lab.arena.board import Board
from steadygrad.lab.arena.command import Options, run
from steadygrad.lab.arena.grid import Grid, Schedule, Score
from steadygrad.lab.arena.phase import phase
from steadygrad.lab.drawing import draw_map

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

SMALL = Grid((1,), (8,), (0.5, 1.0), activations=("relu",), inits=("he", "edge-of-chaos"))
QUICK = Schedule(40, 2)


def test_a_small_grid_is_ranked_and_drawn_and_made_once(tmp_path: Path, capsys) -> None:
    options = Options(SMALL, QUICK, (0.01,), tmp_path, workers=1)
    assert run(options) == 0
    said = capsys.readouterr().out
    assert "depth 1, width 8, gain 0.5: 2 of 4 in the final" in said
    assert "not played: edge-of-chaos/" in said
    assert max(map(len, said.splitlines()[:-1])) <= 80
    files = {one.name for one in tmp_path.iterdir()}
    pictures = {"phase.svg", "phase.png"}
    assert files == {"attempts.jsonl", "ranking.txt", "ranking.json"} | pictures
    told = json.loads((tmp_path / "ranking.json").read_text())
    assert len(told["settings"]) == 2
    assert told["settings"][0]["places"][0]["group"] == "A"
    made = (tmp_path / "attempts.jsonl").read_bytes()
    run(options)
    assert ((tmp_path / "attempts.jsonl").read_bytes(), capsys.readouterr().out) == (made, said)


def board_of(grid: Grid) -> Board:
    """A board after the first round, where one rate of each cell diverged."""
    board = Board("digits", QUICK, grid.cells, 2.3)
    for number, cell in enumerate(board.cells, 1):
        board.rates[0][cell] = (0.01, 0.1)
        well, ill = board.attempts(0, cell)
        board.put(well, Score(number / 10, 2.3, "", -number))
        board.put(ill, Score(math.inf, 2.3, "diverged at step 1", 1.0))
    return board


def test_a_phase_diagram_is_over_gain_and_lr_or_depth_and_width() -> None:
    shown = phase(board_of(SMALL), "loss")
    assert (shown.x, shown.y) == ("learning rate", "gain")
    assert set(shown.panels[0].values) == {(0.01, 0.5), (0.1, 0.5), (0.01, 1.0), (0.1, 1.0)}
    assert shown.panels[0].values[0.1, 1.0] == math.inf
    wide = phase(board_of(Grid((2, 3), (8, 16), inits=("he",))), "trained")
    assert (wide.x, wide.y) == ("width", "depth")
    assert set(wide.panels[0].values.values()) <= {0.0, 1.0}


def test_at_most_twelve_panels_are_shown_the_best_first() -> None:
    shown = phase(board_of(Grid(depths=(2,))), "gradient")
    assert len(shown.panels) == 12
    assert "12 of 24 contestants" in shown.title
    assert shown.panels[0].name == "relu / he / sgd"
    assert shown.signed


def test_a_phase_diagram_is_drawn_the_same_each_time(tmp_path: Path) -> None:
    for name in "ab":
        draw_map(phase(board_of(SMALL), "gradient"), tmp_path, name)
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_where_nothing_can_be_played_the_reason_is_said(tmp_path: Path, capsys) -> None:
    grid = Grid((2,), (8,), activations=("relu",), inits=("edge-of-chaos",))
    assert run(Options(grid, QUICK, (0.01,), tmp_path, workers=1)) == 2
    said = capsys.readouterr()
    assert "no contestant could be played" in said.err
    assert "unfit: No pair of variances" in said.out


def test_without_matplotlib_the_ranking_is_kept(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    grid = Grid((1,), (4,), activations=("relu",), inits=("default",), optimizers=("adam",))
    options = Options(grid, QUICK, (0.01,), tmp_path, workers=1)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'steadygrad\[lab\]'"):
        run(options)
    assert "in the final" in capsys.readouterr().out
    assert (tmp_path / "ranking.json").exists()


def test_the_command_has_two_words_and_knows_the_nearest_name(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["lab", "arena", "--init", "levle"])
    assert done.exit_code == 2
    assert "got levle: did you mean level?" in done.output
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_processes_rank_as_one_would(tmp_path: Path) -> None:
    words = ["lab", "arena", "--depths", "2", "--widths", "8", "--init", "he"]
    words += ["--activation", "relu", "--optimizer", "adam"]
    for workers in ("1", "2"):
        command = [sys.executable, "-m", "steadygrad", *words, "--workers", workers, "-o", workers]
        subprocess.run(command, cwd=tmp_path, check=True)
    one, two = ((tmp_path / n / "ranking.txt").read_text() for n in "12")
    assert one == two


@pytest.mark.long
def test_a_cluster_ranks_as_one_process_would(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    words = ["lab", "arena", "--depths", "2", "--widths", "8", "--init", "he", "--activation"]
    words += ["relu", "--optimizer", "adam"]
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
    ) as cluster:
        for name, where in (
            ("here", ["--workers", "1"]),
            ("there", ["--dask", cluster.scheduler_address]),
        ):
            done = CliRunner().invoke(app, [*words, *where, "-o", str(tmp_path / name)])
            assert done.exit_code == 0, done.output
    here, there = ((tmp_path / n / "ranking.txt").read_text() for n in ("here", "there"))
    assert here == there
