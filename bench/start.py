"""How long the command line takes to start, beside plain Python and importing torch."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.table import markdown, publish

ROUNDS = 9
SCRIPT = """
import torch
model = torch.nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(3):
    optimizer.zero_grad()
    model(torch.randn(8, 4)).square().mean().backward()
    optimizer.step()
"""


def run(rounds: int = ROUNDS) -> None:
    """Measure start-up times; write start.md."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "tiny.py"
        script.write_text(SCRIPT)
        seconds = _interleaved(_commands(str(script)), rounds)
    text = (
        f"Wall-clock seconds, medians of {rounds} interleaved rounds after one that does not count."
    )
    rows = [
        ("steadygrad --help over python -c pass", _more(seconds, "help", "pass"), "<= 0.3"),
        ("steadygrad check tiny.py over import torch", _more(seconds, "check", "torch"), "<= 0.5"),
        ("steadygrad check tiny.py over running it", _more(seconds, "check", "script"), ""),
        ("python -c pass", seconds["pass"], ""),
        ("python -c 'import torch'", seconds["torch"], ""),
    ]
    publish("start", "Start", [text, markdown(("what", "seconds", "asked"), rows)])


def _commands(script: str) -> dict[str, list[str]]:
    python = sys.executable
    return {
        "pass": [python, "-c", "pass"],
        "help": [python, "-m", "steadygrad", "--help"],
        "torch": [python, "-c", "import torch"],
        "script": [python, script],
        "check": [python, "-m", "steadygrad", "check", script],
    }


def _interleaved(commands: dict[str, list[str]], rounds: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds + 1):
        for name, command in commands.items():
            begin = time.perf_counter()
            subprocess.run(command, capture_output=True, check=True, env=_with_bytecode())
            seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def _with_bytecode() -> dict[str, str]:
    """Let Python keep what it compiled in the first round: pip compiles what it installs."""
    return {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


def _more(seconds: dict[str, float], name: str, base: str) -> float:
    return seconds[name] - seconds[base]
