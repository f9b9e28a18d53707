"""What a guard's look at sharded gradients costs beside `clip_grad_norm_`: two processes, FSDP2."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import init_device_mesh
from torch.nn.utils import clip_grad_norm_, get_total_norm
from torch.optim import AdamW
from torch.profiler import ProfilerActivity, profile

import steadygrad as sg
from bench.table import markdown, publish
from steadygrad.guards.gradients import total_of
from steadygrad.guards.readers import reader_of

SIZES = {  # layers, width, rounds
    "48 parameters, 16.8M elements": (24, 836, 60),
    "96 parameters, 13k elements": (48, 16, 200),
    "384 parameters, 52k elements": (192, 16, 80),
}
CLIP, AGAIN = "clip_grad_norm_", "clip_grad_norm_ again (A/A)"
TOTAL, NORMS = "get_total_norm", "the guard's norms"
BOTH, GUARDED = "clip_grad_norm_, fused AdamW", "guarded fused AdamW"
BASE = {AGAIN: CLIP, TOTAL: CLIP, NORMS: CLIP, GUARDED: BOTH}
ASKED = {NORMS: "<= 0.7"}
MAX_NORM = 1e-3  # below all norms here: everything clips
TEXT = (
    "2 processes with gloo on one machine, FSDP2 on the whole model, the clip binds. All ways take "
    "turns, on the same gradients. Wall time is the smallest of all rounds, CPU time of a process "
    "(with gloo's threads) their median; other programs disturb both, the second less. Ratios are "
    "to `clip_grad_norm_`, with the step where there is one. A guard's norms are one for each "
    "parameter over all ranks, and the total, which is all that torch's functions yield; what "
    "exceeds it is divided in the fused kernel. Collectives are counted by torch's profiler."
)

Times = tuple[list[float], list[float]]  # wall and CPU seconds


def run() -> None:
    """Measure on two processes; write distributed.md."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "found.json"
        _launch(target)
        found = json.loads(target.read_text())
    rows = [row for size, ways in found.items() for row in _rows(size, ways)]
    header = ("size", "way", "wall ms", "CPU ms", "wall ratio", "CPU ratio", "asked", "collectives")
    publish("distributed", "Sharded gradients", [TEXT, markdown(header, rows)])


def _launch(target: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--local-addr", "127.0.0.1", "--nproc-per-node", "2"]
    command += ["--module", "bench.distributed", str(target)]
    loopback = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    environment = {"OMP_NUM_THREADS": "1", **os.environ, **loopback}
    subprocess.run(command, check=True, env=environment, timeout=900)


def _rows(size: str, ways: dict[str, dict[str, float]]) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for way, one in ways.items():
        ratios = ["", ""]
        if way in BASE:
            base = ways[BASE[way]]
            ratios = [f"{one[kind] / base[kind]:.2f}" for kind in ("wall", "cpu")]
        row = (size, way, 1e3 * one["wall"], 1e3 * one["cpu"], *ratios, ASKED.get(way, ""))
        rows.append((*row, int(one["collectives"])))
    return rows


# --- On each of the two processes ---------------------------------------------------------------


def _measure(target: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = {size: _timed(*shape) for size, shape in SIZES.items()}
    if dist.get_rank() == 0:
        target.write_text(json.dumps(found))
    dist.destroy_process_group()


def _timed(layers: int, width: int, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of each way: the smallest wall time, the median CPU time; and its collectives."""
    model = _sharded(layers, width)
    parameters = list(model.parameters())
    grads = [one.grad.to_local() for one in parameters]
    kept = [one.clone() for one in grads]
    ways = _ways(model)
    times: dict[str, Times] = {way: ([], []) for way in ways}
    for _ in range(rounds):
        for way, call in ways.items():
            torch._foreach_copy_(grads, kept)
            _time(call, times[way])
    return {
        way: {
            "wall": min(wall),
            "cpu": statistics.median(cpu),
            "collectives": _collectives(ways[way]),
        }
        for way, (wall, cpu) in times.items()
    }


def _sharded(layers: int, width: int) -> nn.Module:
    """A model whose gradients are there, shards of both ranks."""
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(width, width) for _ in range(layers)])
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    model(torch.randn(4, width)).sum().backward()
    return model


def _ways(model: nn.Module) -> dict[str, Callable[[], object]]:
    parameters = list(model.parameters())
    plain = AdamW(parameters, lr=1e-6, fused=True)
    guarded = AdamW(parameters, lr=1e-6, fused=True)
    sg.guard(guarded, sg.clip_norm(MAX_NORM), strict=True)
    reader = reader_of(plain, None)

    def clip() -> Tensor:
        return clip_grad_norm_(parameters, MAX_NORM)

    def total() -> Tensor:
        return get_total_norm([one.grad for one in parameters])

    def both() -> None:
        clip()
        plain.step()

    @torch.no_grad()
    def norms() -> object:
        return total_of(reader.norms(), read=True)

    return {CLIP: clip, AGAIN: clip, TOTAL: total, NORMS: norms, BOTH: both, GUARDED: guarded.step}


def _time(call: Callable[[], object], times: Times) -> None:
    dist.barrier()
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    times[0].append(time.perf_counter() - wall)
    times[1].append(time.process_time() - cpu)


def _collectives(call: Callable[[], object]) -> int:
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        call()
    return sum(one.count for one in seen.key_averages() if one.key.startswith("gloo:"))


if __name__ == "__main__":
    _measure(Path(sys.argv[1]))
