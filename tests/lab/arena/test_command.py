"""The command: a small grid from end to end, its files, and the picture."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from steadygrad.lab.arena.command import Options, run
from steadygrad.lab.arena.grid import Grid, Schedule

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

SMALL = Grid((2, 3), (8,), (0.5, 1.0), activations=("relu",), inits=("he", "edge-of-chaos"))


@pytest.mark.parametrize("color", ["loss", "trained", "gradient"])
def test_a_small_grid_is_ranked_and_drawn(tmp_path: Path, capsys, color) -> None:
    options = Options(SMALL, Schedule(40, 2), (0.01, 0.1), tmp_path, color, workers=1)
    assert run(options) == 0
    said = capsys.readouterr().out
    assert "depth 2, width 8, gain 0.5: 2 of 4 in the final" in said
    assert "not played: edge-of-chaos/" in said
    assert max(map(len, said.splitlines())) <= 80 or str(tmp_path) in said
    files = {one.name for one in tmp_path.iterdir()}
    pictures = {"phase.svg", "phase.png"}
    assert files == {"attempts.jsonl", "ranking.txt", "ranking.json"} | pictures
    told = json.loads((tmp_path / "ranking.json").read_text())
    assert len(told["settings"]) == 4
    assert told["settings"][0]["places"][0]["group"] == "A"


def test_a_second_run_makes_nothing_anew(tmp_path: Path, capsys) -> None:
    options = Options(SMALL, Schedule(40, 2), (0.01,), tmp_path, workers=1)
    run(options)
    first = (tmp_path / "attempts.jsonl").read_bytes(), capsys.readouterr().out
    run(options)
    assert ((tmp_path / "attempts.jsonl").read_bytes(), capsys.readouterr().out) == first


def test_without_matplotlib_the_ranking_is_kept(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    options = Options(SMALL, Schedule(40, 2), (0.01,), tmp_path, workers=1)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'steadygrad\[lab\]'"):
        run(options)
    assert "in the final" in capsys.readouterr().out
    assert (tmp_path / "ranking.json").exists()


def arena(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "steadygrad", "lab", "arena", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_the_command_knows_the_nearest_name(tmp_path: Path) -> None:
    done = arena("--init", "levle", cwd=tmp_path)
    assert done.returncode == 2
    assert "got levle: did you mean level?" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_processes_rank_as_one_would(tmp_path: Path) -> None:
    words = "--depths 2 --widths 8 --init he,level --activation relu --optimizer adam --steps 40"
    for workers in ("1", "2"):
        done = arena(*words.split(), "--workers", workers, "-o", workers, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    one, two = ((tmp_path / n / "ranking.txt").read_text() for n in "12")
    assert one == two
