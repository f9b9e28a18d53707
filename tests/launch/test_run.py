"""A script under `steadygrad run` does what it does under Python, and what was wrong is said."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from steadygrad.core.stored import newest, read

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80", "PYTHONWARNINGS": "default"}
TRAINS = """
import torch
from torch import nn
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
optimizer = torch.optim.Adam(net.parameters(), 1e-2)
def step(x=None):
    x = torch.randn(16, 8) if x is None else x
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(net(x), x[:, :3].nan_to_num().argmax(1))
    loss.backward()
    optimizer.step()
    return loss
"""


def _script(home: Path, body: str, name: str = "train.py") -> Path:
    path = home / name
    path.write_text(TRAINS + textwrap.dedent(body))
    return path


def _run(home: Path, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "steadygrad", "run", *words]
    return subprocess.run(
        command, cwd=home, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, **more
    )


def _python(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=home, env=ENVIRONMENT, capture_output=True, text=True)


def test_a_script_is_main_and_its_output_is_its_own(tmp_path: Path) -> None:
    _script(
        tmp_path,
        """
        import sys, multiprocessing, pickle
        class Mine: pass
        if __name__ == "__main__":
            for _ in range(30):
                loss = step()
            print(sys.argv, sys.path[0], __file__, __spec__, loss.item())
            print(type(pickle.loads(pickle.dumps(Mine()))), sys.modules["__main__"].Mine is Mine)
            print(len(net._forward_hooks), torch.randn(1).item())
        """,
    )

    ours = _run(tmp_path, "--to", "tensorboard", "train.py", "--lr", "3e-4")
    python = _python(tmp_path, "train.py", "--lr", "3e-4")

    assert ours.stdout == python.stdout
    assert ours.returncode == 0
    assert "healthy" in ours.stderr
    assert "30 steps" in ours.stderr
    run = read(newest(tmp_path / "runs"))
    assert [row.step for row in run.rows] == list(range(30))
    assert {site.name for site in run.sites if site.role == "weight"} >= {"0.weight", "2.bias"}
    (events,) = tmp_path.glob("tb/*/events.out.tfevents.*")
    assert b"grad/0.weight" in events.read_bytes()


def test_a_module_runs_as_with_python_m(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package/__init__.py").touch()
    _script(
        tmp_path / "package",
        """
        import sys
        step()
        print(sys.argv, sys.path[0], __name__, __package__, __spec__.name)
        """,
    )

    ours = _run(tmp_path, "-m", "package.train", "one", "-o", "two")
    python = _python(tmp_path, "-m", "package.train", "one", "-o", "two")

    assert ours.stdout == python.stdout
    assert ours.returncode == 0


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("import sys; sys.exit(3)", 3),
        ("raise KeyError('its own')", 1),
        ("import os; os._exit(7)", 7),
    ],
)
def test_a_script_ends_as_it_wants_to(tmp_path: Path, ending: str, code: int) -> None:
    _script(tmp_path, f"step(); step(); step()\n{ending}\n")

    ours = _run(tmp_path, "train.py")

    assert ours.returncode == code
    if "raise" in ending:
        assert _python(tmp_path, "train.py").stderr in ours.stderr
    assert "steadygrad/" not in ours.stderr.replace("steadygrad/runs", "")
    if "_exit" not in ending:
        assert "3 steps" in ours.stderr


def test_a_script_without_training_is_said_to_be_blind(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("print('nothing')")

    ours = _run(tmp_path, "train.py")

    assert (ours.stdout, ours.returncode) == ("nothing\n", 0)
    assert "blind" in ours.stderr
    assert "no optimizer has stepped" in ours.stderr


def test_a_guard_that_stops_the_run_is_exit_code_4(tmp_path: Path) -> None:
    _script(
        tmp_path,
        """
        import steadygrad as sg
        sg.guard(optimizer, sg.skip_nonfinite(), sg.stop_after(2))
        for _ in range(9):
            step(torch.full((16, 8), float("nan")))
        """,
    )

    ours = _run(tmp_path, "train.py")

    assert ours.returncode == 4
    assert "G001 nonfinite-data" in ours.stderr


def test_the_first_cause_is_said_at_once_and_kept(tmp_path: Path) -> None:
    _script(
        tmp_path,
        """
        for number in range(30):
            x = torch.randn(16, 8)
            if number == 20:
                x[3, 2] = float("nan")
            step(x)
            print(number, flush=True)
        """,
    )

    ours = _run(tmp_path, "--fail-on", "risk", "--format", "json", "-o", "out.json", "train.py")

    assert ours.returncode == 1
    assert "step 20: the loss is nan: G001 nonfinite-data" in ours.stderr
    found = json.loads((tmp_path / "out.json").read_text())["findings"]
    assert [one["code"] for one in found] == ["G001"]
    assert found[0]["steps"] == [20, 20]
    incident = newest(tmp_path / "runs") / "incidents" / "20"
    command = [sys.executable, "-m", "steadygrad", "replay", str(incident)]
    told = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, cwd=tmp_path)
    again = subprocess.run(
        [*command, "train.py"], env=ENVIRONMENT, capture_output=True, text=True, cwd=tmp_path
    )
    assert "G001 nonfinite-data" in told.stdout
    assert f"steadygrad replay {incident} train.py" in told.stderr
    assert "sample 3, at [3, 2]" in again.stdout
    assert (told.returncode, again.returncode) == (1, 1)


def test_a_nan_in_disguise_is_explained(tmp_path: Path) -> None:
    _script(
        tmp_path,
        """
        step()
        probabilities = torch.softmax(net(torch.full((4, 8), float("nan"))), -1)
        torch.multinomial(probabilities, 1)
        """,
    )

    ours = _run(tmp_path, "train.py")

    assert ours.returncode == 1
    assert "G001 nonfinite-data" in ours.stderr


def test_ctrl_c_leaves_a_run_and_a_report(tmp_path: Path) -> None:
    process = _started(tmp_path)

    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)

    assert process.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in errors
    assert "steps in" in errors
    assert read(newest(tmp_path / "runs")).rows


def test_a_killed_run_can_be_read(tmp_path: Path) -> None:
    process = _started(tmp_path, wait=3.0)

    process.kill()
    process.communicate(timeout=60)

    run = read(newest(tmp_path / "runs"))
    assert [row.step for row in run.rows] == list(range(len(run.rows)))
    assert run.meta["facts"]["optimizers"][0]["type"] == "Adam"
    command = [sys.executable, "-m", "steadygrad", "report"]
    report = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, cwd=tmp_path)
    assert "healthy" in report.stdout


def _started(home: Path, wait: float = 0.5) -> subprocess.Popen[str]:
    """A run whose training goes on for ever, and has begun some seconds ago."""
    _script(home, "import time\nfor _ in range(10**6):\n    step()\n    time.sleep(0.01)\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "steadygrad", "run", "train.py"],
        cwd=home,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not list(home.glob("runs/*/steps.jsonl")):
        time.sleep(0.1)
    time.sleep(wait)
    return process


def test_a_forked_child_writes_nothing(tmp_path: Path) -> None:
    _script(
        tmp_path,
        """
        import os
        step()
        child = os.fork()
        if not child:
            for _ in range(60):
                step()
            os._exit(0)
        os.waitpid(child, 0)
        step()
        step()
        """,
    )

    ours = _run(tmp_path, "train.py")

    assert ours.returncode == 0
    assert "3 steps" in ours.stderr
    assert len(read(newest(tmp_path / "runs")).rows) == 3


def test_workers_of_a_loader_are_left_alone(tmp_path: Path) -> None:
    _script(
        tmp_path,
        """
        from torch.utils.data import DataLoader, Dataset
        class Numbers(Dataset):
            def __len__(self): return 64
            def __getitem__(self, place):
                assert not torch._C._len_torch_function_stack()
                return torch.randn(8)
        if __name__ == "__main__":
            for context in ("fork", "spawn"):
                for x in DataLoader(Numbers(), 16, num_workers=1, multiprocessing_context=context):
                    step(x)
        """,
    )

    ours = _run(tmp_path, "train.py")

    assert ours.returncode == 0, ours.stderr
    assert "8 steps" in ours.stderr


def test_a_full_disk_and_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    _script(
        tmp_path,
        """
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
        for _ in range(200):
            step()
        print("trained")
        """,
    )
    (tmp_path / "file").touch()

    full = _run(tmp_path, "train.py")
    nowhere = _run(tmp_path, "--run", "file/below", "train.py")

    for ours in (full, nowhere):
        assert (ours.stdout, ours.returncode) == ("trained\n", 0)
        assert ours.stderr.count("training goes on, unrecorded") == 1
        assert "200 steps" in ours.stderr
    assert read(newest(tmp_path / "runs")).rows


@pytest.mark.long
def test_two_runs_never_share_a_directory(tmp_path: Path) -> None:
    _script(tmp_path, "step()")

    for _ in range(2):
        assert _run(tmp_path, "--run", "mine", "train.py").returncode == 0

    assert len(read(tmp_path / "mine").rows) == 1
    assert len(read(tmp_path / "mine-2").rows) == 1


def test_a_sink_without_its_package_is_said_in_one_sentence(tmp_path: Path) -> None:
    source = """
        import sys
        sys.modules["wandb"] = None
        sys.argv = ["steadygrad", "run", "--to", "wandb", "train.py"]
        from steadygrad.cli import main
        main()
    """
    ours = _python(tmp_path, "-c", textwrap.dedent(source))
    assert ours.returncode == 2
    assert ours.stderr == (
        "steadygrad: expected wandb, which writes to Weights & Biases, got none: "
        "pip install 'steadygrad[wandb]'\n"
    )


def test_what_is_no_script_is_said_in_one_sentence(tmp_path: Path) -> None:
    ours = _run(tmp_path, "missing.py")

    assert ours.returncode == 2
    assert ours.stderr == "steadygrad: expected a training script, got nothing at missing.py\n"
