"""Check chains of up to 10,000 layers: exact, and in time that grows with the depth only."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor, nn

import steadygrad as sg
from bench.table import markdown, publish
from steadygrad.testing.case import generator_at

DEPTHS = (1_000, 3_000, 10_000)
WIDTH, BATCH, SEED = 16, 8, 0


def run(depths: tuple[int, ...] = DEPTHS) -> None:
    """Measure seconds and error at each depth; write depth.md."""
    rows = [_row(depth) for depth in depths]
    power = math.log(rows[-1][1] / rows[0][1]) / math.log(depths[-1] / depths[0])
    header = ("layers", "CPU s", "ms per layer", "decades by check", "by float64", "difference")
    text = (
        f"ReLU layers of width {WIDTH} with small weights and some bias, batch {BATCH}, float32, "
        "without the optional probes. The independent value takes the same random cotangent back "
        "through the same weights and masks in float64, its norm set to one at every layer; the "
        "whole gain leaves the range of float64 from about 1,600 layers on."
    )
    grows = f"Seconds grow with depth to the power {power:.2f} (linear: 1)."
    publish("depth", "Depth: exact and linear", [text, markdown(header, rows), grows])


def _row(depth: int) -> tuple[int, float, float, str, str, float]:
    with generator_at(SEED):
        model, x = _chain(depth), torch.randn(BATCH, WIDTH)
    begin = time.process_time()
    report = sg.check(model, x, probes=False, seed=SEED)
    seconds = time.process_time() - begin
    flow = report.record.facts["flow"]
    total, truth = float(flow["total_decades"]), independent(model, x)
    exact = f"{total:.4f}", f"{truth:.4f}"
    return depth, seconds, 1e3 * seconds / depth, *exact, abs(total - truth)


def _chain(depth: int) -> nn.Sequential:
    layers = [nn.Linear(WIDTH, WIDTH) for _ in range(depth)]
    for layer in layers:
        nn.init.normal_(layer.weight, std=0.7 * (2 / WIDTH) ** 0.5)
        nn.init.normal_(layer.bias, std=0.1)
    return nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))


def independent(model: nn.Sequential, x: Tensor) -> float:
    """Return log10 |J^T v| / |v| for check's v, layer by layer in float64."""
    masks, h = [], x
    with torch.no_grad():
        for linear, relu in zip(model[::2], model[1::2], strict=True):
            h = relu(linear(h))
            masks.append(h > 0)
    generator = torch.Generator().manual_seed(SEED)
    gradient = torch.randn(h.shape, generator=generator).double()
    gradient /= gradient.norm()
    decades = 0.0
    for linear, mask in zip(reversed(model[::2]), reversed(masks), strict=True):
        gradient = (gradient * mask) @ linear.weight.detach().double()
        size = float(gradient.norm())
        decades += math.log10(size)
        gradient /= size
    return decades
