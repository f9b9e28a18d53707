"""The command line: exit codes, what stands where, and what is not imported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from steadygrad.core.record import Site
from steadygrad.core.steps import Row
from steadygrad.core.store import create

SCRIPTS = Path(__file__).parent / "launch" / "scripts"


def steadygrad(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "steadygrad", *arguments],
        capture_output=True,
        check=False,
        timeout=300,
        cwd=cwd,
        encoding="utf-8",
        errors="replace",
    )


@pytest.fixture
def a_run(tmp_path: Path) -> Path:
    said: list[str] = []
    writer = create(tmp_path / "runs" / "first", "first", said.append)
    writer.meta({}, [Site("AdamW", "step"), Site("fc.weight", "weight")])
    for step in range(30):
        read = {"loss": [1.0 / (1 + step)], "grad": [0.1]}
        writer.add(Row(step, step / 10, {name: np.float32(one) for name, one in read.items()}))
    writer.close()
    assert not said
    return writer.path


@pytest.mark.parametrize(
    "words",
    [["--help"], ["check", "--help"], ["explain"], ["explain", "G201"], ["top", "--once", "RUN"]],
)
def test_what_needs_no_tensor_imports_no_torch(words: list[str], a_run: Path) -> None:
    words = [str(a_run) if word == "RUN" else word for word in words]
    source = f"""
import sys
from steadygrad.cli import app
try:
    app({words!r}, prog_name="steadygrad")
except SystemExit as leaving:
    assert not leaving.code, leaving.code
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout


def test_a_finding_is_explained_by_code_or_name() -> None:
    by_code, by_name = steadygrad("explain", "g201"), steadygrad("explain", "weak-init")
    assert by_code.stdout == by_name.stdout
    assert "G201 weak-init" in by_code.stdout
    unknown = steadygrad("explain", "G2011")
    assert unknown.returncode == 2
    assert "did you mean G201?" in unknown.stderr


def test_a_code_seen_before_the_first_step_and_over_many_has_two_pages() -> None:
    both = steadygrad("explain", "no-gradient").stdout
    assert both.index("G501 no-gradient") < both.index("G501 no-gradient over many steps")
    assert "over many steps" not in steadygrad("explain", "G411").stdout


def test_the_report_alone_stands_on_standard_output() -> None:
    done = steadygrad("check", "--format", "json", str(SCRIPTS / "workers.py"), "spawn")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verdict"] == "healthy"
    assert "the child trained: True" in done.stderr


def test_a_check_writes_a_page(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    done = steadygrad(
        "check", "--format", "html", "-o", str(page), str(SCRIPTS / "plain.py"), "--lr", "0.1"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    written = page.read_text(encoding="utf-8")
    assert written.startswith("<!doctype html>")
    assert "healthy" in written
    assert '"profile":' in written


def test_the_page_of_a_run_tells_what_lies_in_its_directory(a_run: Path) -> None:
    with (a_run / "events.jsonl").open("a") as file:
        file.write('{"step": 7, "kind": "jump", "norm": 3.0}\n')
    done = steadygrad("report", "--format", "html", str(a_run))
    assert done.returncode == 0, done.stderr
    assert '"flags":[{"step":7,"label":"gradient jumped"}]' in done.stdout


def test_options_after_the_target_are_the_scripts(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    done = steadygrad(
        "check", "--format=json", "-o", str(report), str(SCRIPTS / "plain.py"), "--lr", "0.1"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert json.loads(report.read_text())["target"].endswith("plain.py")


def test_findings_exit_with_one_unless_they_are_below_the_level() -> None:
    done = steadygrad("check", str(SCRIPTS / "garbage.py"))
    assert done.returncode == 1, done.stderr
    assert "G204" in done.stdout


def test_a_script_that_catches_everything_is_ended_all_the_same(tmp_path: Path) -> None:
    saved = tmp_path / "model.pt"
    done = steadygrad("check", "--format", "json", str(SCRIPTS / "stubborn.py"), str(saved))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verdict"] == "healthy"
    assert not saved.exists()


RAISES = """
import torch
def train():
    try:
        torch.nn.Linear(2, 1)(torch.ones(1, 3))
    except RuntimeError as error:
        raise ValueError("a bad batch") from error
train()
"""


def test_a_users_exception_is_shown_as_python_shows_it(tmp_path: Path) -> None:
    (tmp_path / "raises.py").write_text(RAISES)
    ours = steadygrad("check", "raises.py", cwd=tmp_path)
    alone = subprocess.run(
        [sys.executable, "raises.py"], capture_output=True, check=False, cwd=tmp_path, text=True
    )
    assert ours.returncode == 3
    assert ours.stdout == ""
    assert ours.stderr == alone.stderr


def test_a_sentence_and_two_for_what_cannot_be_looked_at(tmp_path: Path) -> None:
    done = steadygrad("check", "missing.py", cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "missing.py, which does not exist" in done.stderr


def test_an_interrupt_exits_as_a_shell_expects(tmp_path: Path) -> None:
    (tmp_path / "stuck.py").write_text("raise KeyboardInterrupt")
    done = steadygrad("check", "stuck.py", cwd=tmp_path)
    assert done.returncode == 130
    assert done.stderr.startswith("steadygrad: interrupted")


def test_the_newest_run_is_drawn_once_where_there_is_no_terminal(a_run: Path) -> None:
    done = steadygrad("top", cwd=a_run.parents[1])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("first  ended")
    assert "\x1b" not in done.stdout
    assert done.stdout == steadygrad("top", str(a_run), "--once").stdout


@pytest.mark.parametrize("words", [[], ["missing"], ["empty"], ["a\x1b[2Jb"]])
def test_what_is_no_run_is_a_sentence_and_two(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "empty").mkdir()
    done = steadygrad("top", *words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("steadygrad: expected a run directory, got ")
    assert done.stderr.endswith(": `steadygrad run train.py` makes one\n")
    assert "\x1b" not in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminal on this system")
def test_an_interrupt_ends_the_view_and_says_nothing(a_run: Path) -> None:
    import pty

    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "steadygrad", "top", str(a_run)]
    variables = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=variables) as child:
        os.close(theirs)
        drawn = b""
        while b"fc" not in drawn:
            drawn += os.read(ours, 4096)
        child.send_signal(signal.SIGINT)
        try:
            while more := os.read(ours, 4096):
                drawn += more
        except OSError:  # the other end was closed
            pass
    assert child.returncode == 0
    assert b"Traceback" not in drawn
    assert drawn.rstrip().endswith((b"\x1b[?1049l", b"\x1b[?25h"))
    os.close(ours)


def test_a_backward_pass_is_compared_with_differences() -> None:
    done = steadygrad("check", "--numeric", str(SCRIPTS / "plain.py"), "--lr", "0.1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("agrees: ")


WRONG = """
import torch
class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x
    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient
class Layer(torch.nn.Linear):
    def forward(self, x):
        return torch.nn.functional.linear(x, Twice.apply(self.weight), self.bias)
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), Layer(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model(torch.randn(16, 4)).square().mean().backward()
optimizer.step()
"""


def test_a_wrong_backward_pass_is_named(tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text(WRONG)
    done = steadygrad("check", "--numeric", "wrong.py", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("differs: the gradient of 2.weight is wrong")


def test_the_lab_lists_its_experiments_and_knows_the_nearest(tmp_path: Path) -> None:
    listed = steadygrad("lab", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert "he2015" in listed.stdout
    assert not list(tmp_path.iterdir())
    unknown = steadygrad("lab", "he2016", cwd=tmp_path)
    assert unknown.returncode == 2
    assert "got he2016: did you mean he2015?" in unknown.stderr
