"""The demo tells its story to the end, and says what it needs."""

from __future__ import annotations

import re
import sys

import pytest
from typer.testing import CliRunner

from steadygrad import demo
from steadygrad.cli import app
from steadygrad.render.words import ASCII, UNICODE


def test_the_tools_own_multiplier_makes_the_network_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setattr(demo, "STEPS", 60)
    done = CliRunner().invoke(app, ["demo"])
    assert done.exit_code == 0
    told = done.stdout
    assert "✗ G201 weak-init" in told
    assert "✓ healthy" in told
    before, after = (float(found) for found in re.findall(r"start, ([0-9.]+) after", told))
    assert before > 2.25  # a constant predictor's: ln 10 = 2.30
    assert after < 2.0


def test_without_scikit_learn_the_demo_names_the_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert demo.main() == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "pip install 'steadygrad[demo]'" in told.err


@pytest.mark.parametrize("width", [40, 80, 100])
def test_two_curves_are_told_apart_without_color(width: int) -> None:
    losses = {"as it was": [2.3] * 50, "corrected": [4.0 / (1 + i) for i in range(50)]}
    for glyphs, first, second in ((UNICODE, "·", "●"), (ASCII, ".", "o")):
        lines = demo.curves(losses, width, glyphs).splitlines()
        assert all(len(line) <= width for line in lines[:-1])
        assert first in lines[-1]
        assert second in lines[-1]
        assert lines[0].startswith("  4.0 ") or width < 60
        assert lines[-2].startswith("    0 ")
