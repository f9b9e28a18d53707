"""How long the first cause of a NaN takes to find, beside a step of the training that it stops."""

from __future__ import annotations

import statistics
import time
import warnings

import torch
from torch import Tensor, nn

import steadygrad as sg
from bench.table import Row, markdown, publish
from bench.watch import ASKED, trainer

STEPS = 30
ROUNDS = 5


class Root(nn.Module):
    """The root of its input's first element, as if all else had been masked: NaN below zero."""

    def forward(self, x: Tensor) -> Tensor:
        first = x.flatten()[:1]
        return x + 0 * (first - 1e9 * self.training).sqrt().sum()


def run() -> None:
    """Measure all models; write cause.md."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "steadygrad:", RuntimeWarning)
    rows: list[Row] = []
    for name in ASKED:
        found = [_once(name) for _ in range(ROUNDS)]
        step, took = (statistics.median(column) for column in list(zip(*found, strict=True))[:2])
        right = sum(one[2] for one in found)
        rows.append((name, 1000 * step, 1000 * took, took / step, f"{right} of {ROUNDS}", "<= 5"))
    text = (
        f"A training of {STEPS} steps under `sg.watch`, in whose last step an op of a module makes "
        "NaN: the time of a plain step, and that of looking for the op (both by the clock on the "
        f"wall, median of {ROUNDS}). Until then nothing is done for it but what watch.md measures."
    )
    header = ("model", "step, ms", "first cause, ms", "steps", "op and module right", "asked")
    publish("cause", "First cause of a NaN", [text, markdown(header, rows)])


def _once(name: str) -> tuple[float, float, bool]:
    """Seconds of a step, seconds of the search, and whether it named the op."""
    model, optimizer, step = trainer(name)
    layers = [one for one in model.modules() if isinstance(one, (nn.Linear, nn.Conv2d))]
    broken = layers[len(layers) // 2]
    seconds = []
    with sg.watch(model, optimizer) as watch:
        for number in range(STEPS):
            if number == STEPS - 1:
                handle = broken.register_forward_hook(lambda _m, _a, out: Root()(out))
            begin = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - begin)
        handle.remove()
    first = watch.causes[0] if watch.causes else None
    right = first is not None and first.code == "G002" and "sqrt" in str(first.evidence.get("op"))
    return statistics.median(seconds[10:-1]), watch._causes.seconds, right


if __name__ == "__main__":
    run()
