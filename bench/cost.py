"""What a check costs beside one plain forward and backward pass: CPU time and memory."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

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
        "count; a step is one forward and backward pass in training mode; "
        "A/A is a second step over the first: the noise of the ratio. "
        "Memory is the peak of the resident size above the model and libraries, each in a process "
        "of its own. Everything on one thread; without the optional probes (time, update, "
        "sharpness), except in the last column."
    )
    header = (
        "model", "step, s", "check, s", "check / step", "A/A", "memory: check / step",
        "check with all probes / step",
    )  # fmt: skip
    rows = [_row(name, rounds) for name in MODELS]
    publish("cost", "Cost of a check", [text, markdown(header, rows), "Asked: <= 2.5, <= 1.5."])


def _row(name: str, rounds: int) -> Row:
    times = measured(name, rounds)
    step = times["step"]
    memory = peak(name, "check") / peak(name, "step")
    return (
        name,
        step,
        times["check"],
        times["check"] / step,
        times["again"] / step,
        memory,
        times["all"] / step,
    )


def measured(name: str, rounds: int) -> dict[str, float]:
    """Return median CPU seconds of a step, a second step, and a check with and without probes."""
    torch.manual_seed(0)
    model, x = MODELS[name]()
    jobs: dict[str, Callable[[], object]] = {
        "step": lambda: step(model, x),
        "check": lambda: sg.check(model, x, probes=False),
        "again": lambda: step(model, x),
        "all": lambda: sg.check(model, x),
    }
    seconds: dict[str, list[float]] = {job: [] for job in jobs}
    for _ in range(rounds + 1):
        for job, work in jobs.items():
            begin = time.process_time()
            work()
            seconds[job].append(time.process_time() - begin)
    return {job: statistics.median(values[1:]) for job, values in seconds.items()}


def step(model: nn.Module, x: Tensor) -> None:
    """Run one forward and backward pass with a scalar loss and throw the gradients away."""
    model.train()
    out = model(x)
    scores = out if isinstance(out, Tensor) else out.logits
    scores.square().mean().backward()
    model.zero_grad()


def peak(name: str, job: str) -> float:
    """Return the bytes by which a job raises the peak resident size, in a process of its own."""
    code = f"from bench.cost import report_peak; report_peak({name!r}, {job!r})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def report_peak(name: str, job: str) -> None:
    """Print by how many bytes a job raised the peak resident size."""
    torch.manual_seed(0)
    model, x = MODELS[name]()
    step(nn.Linear(4, 4), torch.randn(2, 4))
    before = _resident()
    if job == "step":
        step(model, x)
    else:
        sg.check(model, x, probes=False)
    print(json.dumps(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))


def _resident() -> int:
    """Bytes resident now, where the system says; otherwise the peak until now."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
