"""How long the command line takes to start, beside plain Python and importing torch."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.table import markdown, publish

ROUNDS = 9
Seconds = tuple[float, float]  # of CPU time, and by the clock on the wall
LONG = 3  # rounds of the scripts that train for longer
SCRIPT = """
import torch
model = torch.nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(3):
    optimizer.zero_grad()
    model(torch.randn(8, 4)).square().mean().backward()
    optimizer.step()
"""
TRAINING = """
import sys
from bench.watch import trainer
step = trainer("MLP 20 x 256")[2]
for _ in range(int(sys.argv[1])):
    step()
"""


def run(rounds: int = ROUNDS) -> None:
    """Measure start-up times; write start.md."""
    with tempfile.TemporaryDirectory() as folder:
        script, training = Path(folder) / "tiny.py", Path(folder) / "training.py"
        script.write_text(SCRIPT)
        training.write_text(TRAINING)
        seconds = _interleaved(_commands(str(script)), rounds)
        seconds |= _interleaved(_trainings(str(training), folder, 10), rounds)
        seconds |= _interleaved(_trainings(str(training), folder, 1000), LONG)
    (cpu, wall), (base, plain) = seconds["run 1000"], seconds["python 1000"]
    text = (
        f"{rounds} interleaved rounds after one that does not count: seconds of CPU time (median), "
        "and by the wall's clock (smallest: other programs only add to it). The 10 and 1000 steps "
        "are those of an MLP 20 x 256 that clips, written to disk, the report at the end included; "
        f"{LONG} rounds of the 1000."
    )
    rows = [
        _row("steadygrad --help over python -c pass", seconds, ("help", "pass"), "<= 0.3"),
        _row("steadygrad check tiny.py over import torch", seconds, ("check", "torch"), "<= 0.5"),
        _row("steadygrad check tiny.py over running it", seconds, ("check", "script")),
        _row("steadygrad run, 10 steps, over python", seconds, ("run 10", "python 10"), "<= 0.5"),
        ("steadygrad run, 1000 steps, as a multiple", cpu / base, wall / plain, "<= 1.02"),
        _row("python, 1000 steps", seconds, ("python 1000",)),
        _row("python -c pass", seconds, ("pass",)),
        _row("python -c 'import torch'", seconds, ("torch",)),
    ]
    publish("start", "Start", [text, markdown(("what", "CPU", "wall", "asked"), rows)])


def _commands(script: str) -> dict[str, list[str]]:
    python = sys.executable
    return {
        "pass": [python, "-c", "pass"],
        "help": [python, "-m", "steadygrad", "--help"],
        "torch": [python, "-c", "import torch"],
        "script": [python, script],
        "check": [python, "-m", "steadygrad", "check", script],
    }


def _trainings(script: str, folder: str, steps: int) -> dict[str, list[str]]:
    python = [sys.executable, script, str(steps)]
    watched = [sys.executable, "-m", "steadygrad", "run", "--run", f"{folder}/run"]
    return {f"python {steps}": python, f"run {steps}": [*watched, script, str(steps)]}


def _interleaved(commands: dict[str, list[str]], rounds: int) -> dict[str, Seconds]:
    seconds: dict[str, list[Seconds]] = {name: [] for name in commands}
    for _ in range(rounds + 1):
        for name, command in commands.items():
            seconds[name].append(_timed(command))
    return {name: _typical(values[1:]) for name, values in seconds.items()}


def _timed(command: list[str]) -> Seconds:
    """Run a command to its end, and fail where it fails."""
    begin, spent = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, capture_output=True, check=True, env=_with_bytecode())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - spent.ru_utime - spent.ru_stime
    return cpu, time.perf_counter() - begin


def _typical(values: list[Seconds]) -> Seconds:
    return statistics.median(cpu for cpu, _ in values), min(wall for _, wall in values)


def _with_bytecode() -> dict[str, str]:
    """Let Python keep what it compiled in the first round: pip compiles what it installs."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPATH": str(Path(__file__).parent.parent)}


def _row(
    what: str, seconds: dict[str, Seconds], names: tuple[str, ...], asked: str = ""
) -> tuple[str, float, float, str]:
    """The seconds of the first command, over those of the second where there is one."""
    (cpu, wall), *base = (seconds[name] for name in names)
    return what, cpu - sum(one for one, _ in base), wall - sum(one for _, one in base), asked
