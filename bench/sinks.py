"""What showing a run in a sink costs beside watching it: CPU time of the process, amortised."""

from __future__ import annotations

import os
import random
import statistics
import sys
import tempfile
from pathlib import Path

import torch

import steadygrad as sg
from bench.table import Row, markdown, publish
from bench.watch import SECONDS, Worker, answer, cell, in_turn, ratio, trainer
from steadygrad.sinks.catalogue import SINKS

PAIRS = 12
NAMES = ("GPT 6 x 256", "MLP 20 x 256")
ARMS = ("again", "watch", *SINKS)


def serve(name: str, arm: str) -> None:
    """Train, watched and shown in a sink, when asked to; what a sink prints goes to stderr."""
    torch.set_num_threads(1)
    model, optimizer, step = trainer(name)
    out, sys.stdout = sys.stdout, sys.stderr
    with tempfile.TemporaryDirectory() as home:
        os.chdir(home)
        os.environ |= {
            "WANDB_MODE": "offline",
            "MLFLOW_TRACKING_URI": Path(home, "mlruns").as_uri(),
            "MLFLOW_ALLOW_FILE_STORE": "true",
            "TRACKIO_DIR": home,
        }
        with sg.watch(model, optimizer, to=[SINKS[arm]()] if arm in SINKS else []):
            answer(step, out)


def run(pairs: int = PAIRS) -> None:
    """Measure all sinks; write sinks.md."""
    random.seed(0)
    rows: list[Row] = []
    for name in NAMES:
        found = in_turn({arm: Worker(name, arm, "bench.sinks") for arm in ARMS}, pairs)
        step = statistics.median(found["watch"]) * 1000
        cells = [cell(ratio(found[arm], found["watch"])) for arm in ARMS if arm != "watch"]
        rows.append((name, step, *cells))
    text = (
        f"CPU time of the process, the sink's thread included, over that of a watch without a "
        f"sink, {pairs} slots of {SECONDS:g} s each, interleaved in random order, each arm a "
        "process of its own, on one thread; ratio of the sums, and in brackets its 95 % interval "
        "(bootstrap of pairs of slots). A/A is the same watch twice. All sinks write to a local "
        "disk; the process of its own that W&B starts is not counted."
    )
    header = ("model", "step, ms", "A/A", *SINKS)
    publish("sinks", "Cost of a sink", [text, markdown(header, rows)])


if __name__ == "__main__":
    serve(*sys.argv[1:])
