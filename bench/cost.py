"""What a check costs beside one plain forward and backward pass: CPU time and memory."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers as hf
from torch import Tensor, nn

import steadygrad as sg
from bench.table import Row, markdown, publish
from steadygrad.testing import nets

ROUNDS = 7
Make = Callable[[], tuple[nn.Module, Tensor]]


def gpt2() -> tuple[nn.Module, Tensor]:
    """Build GPT-2 124M as GPT2Config() has it, for one text of 128 tokens."""
    return hf.GPT2LMHeadModel(hf.GPT2Config()), torch.randint(50257, (1, 128))


def resnet50() -> tuple[nn.Module, Tensor]:
    """Build ResNet-50 as ResNetConfig() has it, for four images of 224 x 224."""
    model = hf.ResNetForImageClassification(hf.ResNetConfig(num_labels=1000))
    return model, torch.randn(4, 3, 224, 224)


def mlp30() -> tuple[nn.Module, Tensor]:
    """Build a chain of 30 layers of width 256, for 128 samples."""
    return nets.fill(nets.Chain(30, 256), nets.he), torch.randn(128, 64)


MODELS: dict[str, Make] = {
    "GPT-2 124M, 1 x 128 tokens": gpt2,
    "ResNet-50, 4 x 224 x 224": resnet50,
    "MLP 30 x 256, 128 samples": mlp30,
}


def run(rounds: int = ROUNDS) -> None:
    """Measure time and memory; write cost.md."""
    text = (
        f"CPU time of the process, medians of {rounds} interleaved rounds after one that does not "
        "count, on one thread. A step is one forward and backward pass in training mode, gradients "
        "of the weights included; A/A is a second step over the first: the noise of the ratio. "
        "A check of inputs or of a loss is made without the optional probes (time, update, "
        "sharpness); all probes are given the loss and AdamW at 1e-4. Memory is the peak of the "
        "resident size above the model and libraries, each in a process of its own."
    )
    header = (
        "model",
        "step, s",
        "A/A",
        "inputs / step",
        "loss / step",
        "all probes / step",
        "memory, MB: step",
        "inputs / step",
        "loss / step",
    )
    rows = [_row(name, rounds) for name in MODELS]
    publish("cost", "Cost of a check", [text, markdown(header, rows), "Asked: <= 2.5, <= 1.5."])


def _row(name: str, rounds: int) -> Row:
    times = measured(name, rounds)
    peaks = {job: peak(name, job) for job in ("step", "inputs", "loss")}
    return (
        name,
        times["step"],
        *(times[job] / times["step"] for job in ("again", "inputs", "loss", "all")),
        peaks["step"] / 1e6,
        *(peaks[job] / peaks["step"] for job in ("inputs", "loss")),
    )


def jobs_of(name: str) -> dict[str, Callable[[], object]]:
    """Build a model and return what is to be measured on it."""
    torch.manual_seed(0)
    model, x = MODELS[name]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    return {
        "step": lambda: step(model, x),
        "inputs": lambda: sg.check(model, x, probes=False),
        "loss": lambda: sg.check(model, loss=lambda m: loss(m, x), probes=False),
        "again": lambda: step(model, x),
        "all": lambda: sg.check(model, loss=lambda m: loss(m, x), optimizer=optimizer),
    }


def measured(name: str, rounds: int) -> dict[str, float]:
    """Return median CPU seconds of each job."""
    jobs = jobs_of(name)
    seconds: dict[str, list[float]] = {job: [] for job in jobs}
    for _ in range(rounds + 1):
        for job, work in jobs.items():
            begin = time.process_time()
            work()
            seconds[job].append(time.process_time() - begin)
    return {job: statistics.median(values[1:]) for job, values in seconds.items()}


def loss(model: nn.Module, x: Tensor) -> Tensor:
    """Return a scalar of the model's output."""
    out = model(x)
    scores: Tensor = out if isinstance(out, Tensor) else out.logits
    return scores.square().mean()


def step(model: nn.Module, x: Tensor) -> None:
    """Run one forward and backward pass and throw the gradients away."""
    model.train()
    loss(model, x).backward()
    model.zero_grad()


def peak(name: str, job: str) -> float:
    """Return the bytes by which a job raises the peak resident size, in a process of its own."""
    code = f"from bench.cost import report_peak; report_peak({name!r}, {job!r})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def report_peak(name: str, job: str) -> None:
    """Print by how many bytes a job raised the peak resident size."""
    work = jobs_of(name)[job]
    step(nn.Linear(4, 4), torch.randn(2, 4))
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is resident now
    before = _status("VmRSS")
    work()
    print(json.dumps(_status("VmHWM") - before))


def _status(entry: str) -> int:
    """Bytes under this entry of /proc/self/status.

    Not getrusage: its ru_maxrss is inherited over fork and exec, so that a child of a large
    process reports its parent's peak.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(entry))
