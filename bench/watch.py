"""What watching costs beside a training step that clips: CPU time and memory, amortised."""

from __future__ import annotations

import contextlib
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.table import Row, markdown, publish

PAIRS = 40
SECONDS = 1.2  # of a slot
ARMS = ("clip", "watch", "run")
ASKED = {"GPT 6 x 256": 1.01, "ResNet-18-like": 1.01, "MLP 20 x 256": 1.03}
Step = Callable[[], None]


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        shape = (batch, length, 3, self.heads, width // self.heads)
        q, k, v = self.qkv(self.ln1(x)).view(shape).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(x.shape))
        return x + self.down(F.gelu(self.up(self.ln2(x))))


class GPT(nn.Module):
    def __init__(self, layers: int = 6, width: int = 256, words: int = 512) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(128, width)
        self.blocks = nn.ModuleList(Block(width, 8) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Residual(nn.Module):
    def __init__(self, narrow: int, wide: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(narrow, wide, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(wide, wide, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(wide), nn.BatchNorm2d(wide)
        self.short = nn.Sequential()
        if stride > 1 or narrow != wide:
            self.short = nn.Sequential(
                nn.Conv2d(narrow, wide, 1, stride, bias=False), nn.BatchNorm2d(wide)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.short(x))


def resnet(width: int = 32) -> nn.Module:
    """Build a ResNet-18 for small images, 2.8 million parameters."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)]
    layers.append(nn.ReLU())
    narrow = width
    for wide, stride in ((width, 1), (2 * width, 2), (4 * width, 2), (8 * width, 2)):
        layers += [Residual(narrow, wide, stride), Residual(wide, wide, 1)]
        narrow = wide
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(narrow, 10))


def mlp(layers: int = 20, width: int = 256) -> nn.Module:
    """Build a chain of linear layers and ReLUs."""
    chain = [m for _ in range(layers) for m in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*chain[:-1])


def stand(name: str) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    """Build a model, and the loss of a batch under it."""
    torch.manual_seed(0)
    if name.startswith("GPT"):
        ids = torch.randint(512, (8, 129))
        return GPT(), lambda model: F.cross_entropy(
            model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()
        )
    if name.startswith("ResNet"):
        images, labels = torch.randn(32, 3, 32, 32), torch.randint(10, (32,))
        return resnet(), lambda model: F.cross_entropy(model(images), labels)
    x, y = torch.randn(64, 256), torch.randn(64, 256)
    return mlp(), lambda model: F.mse_loss(model(x), y)


def trainer(name: str) -> tuple[nn.Module, torch.optim.Optimizer, Step]:
    """Make a step that clips its gradients."""
    model, loss_of = stand(name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        loss_of(model).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return model, optimizer, step


def serve(name: str, arm: str) -> None:
    """Train as an arm does, when asked to."""
    torch.set_num_threads(1)
    model, optimizer, step = trainer(name)
    with _watched(arm, model, optimizer):
        answer(step, sys.stdout)


def answer(step: Step, out: TextIO) -> None:
    """Run as many steps as standard input asks for, and answer with their CPU time, to its end."""
    with contextlib.suppress(EOFError):
        while True:
            count = int(input())
            begin = time.process_time()
            for _ in range(count):
                step()
            print(time.process_time() - begin, file=out, flush=True)


@contextlib.contextmanager
def _watched(arm: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    if arm == "clip":
        yield
        return
    import steadygrad as sg

    with tempfile.TemporaryDirectory() as home:
        where = None if arm == "watch" else Path(home) / "run"
        with sg.watch(model, optimizer, run=where):
            yield


class Worker:
    """A process that trains when it is asked to."""

    def __init__(self, name: str, arm: str, module: str = "bench.watch") -> None:
        command = [sys.executable, "-m", module, name, arm]
        pipe = subprocess.PIPE
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, text=True, env=environment
        )

    def steps(self, count: int) -> float:
        """CPU seconds of some steps."""
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("expected a process with pipes")
        print(count, file=stdin, flush=True)
        return float(stdout.readline())

    def close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()


def measured(name: str, pairs: int) -> dict[str, list[float]]:
    """CPU seconds of slots of each arm; `again` is `clip` twice."""
    arms = ("again", *ARMS)
    return in_turn({arm: Worker(name, "clip" if arm == "again" else arm) for arm in arms}, pairs)


def in_turn(workers: Mapping[str, Worker], pairs: int) -> dict[str, list[float]]:
    """CPU seconds of a step in slots of each worker, interleaved in random order."""
    try:
        count = max(3, round(SECONDS / (workers["again"].steps(20) / 20)))
        for worker in workers.values():
            worker.steps(100)  # the first steps are sampled more often
        found: dict[str, list[float]] = {arm: [] for arm in workers}
        for _ in range(pairs):
            for arm in random.sample(sorted(workers), len(workers)):
                found[arm].append(workers[arm].steps(count) / count)
    finally:
        for worker in workers.values():
            worker.close()
    return found


def ratio(over: Sequence[float], under: Sequence[float]) -> tuple[float, float, float]:
    """The ratio of sums, as sampled steps are rare, and its 95 % interval by bootstrap of pairs."""
    pairs = list(zip(over, under, strict=True))
    draws = []
    for _ in range(2000):
        some = random.choices(pairs, k=len(pairs))
        draws.append(sum(a for a, _ in some) / sum(b for _, b in some))
    draws.sort()
    return sum(over) / sum(under), draws[50], draws[-50]


def run(pairs: int = PAIRS) -> None:
    """Measure all models; write watch.md."""
    random.seed(0)
    rows: list[Row] = []
    for name, asked in ASKED.items():
        found = measured(name, pairs)
        step = statistics.median(found["clip"]) * 1000
        cells = [cell(ratio(found[arm], found["clip"])) for arm in ("again", "watch", "run")]
        rows.append((name, step, *cells, asked))
    text = (
        f"CPU time of the process over that of a step that clips, {pairs} slots of "
        f"{SECONDS:g} s each, interleaved in random order, each arm a process of its own, on one "
        "thread; ratio of the sums, since one step in many is sampled, and in brackets its 95 % "
        "interval (bootstrap of pairs of slots). A/A is the same loop twice. `watch` keeps the run "
        "in memory, `to disk` writes it as well; both with the default overhead of 1 %."
    )
    header = ("model", "step, ms", "A/A", "watch", "watch, to disk", "asked")
    publish("watch", "Cost of a watch", [text, markdown(header, rows)])


def cell(found: tuple[float, float, float]) -> str:
    return f"{found[0]:.3f} [{found[1]:.3f}, {found[2]:.3f}]"


if __name__ == "__main__":
    serve(*sys.argv[1:])
