"""What a guard costs beside clipping by hand: CPU time, reads of the gradients, memory, bits."""

from __future__ import annotations

import gc
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, AdamW, Optimizer
from torch.profiler import profile

import steadygrad as sg
from bench.table import Row, markdown, publish

ROUNDS, STEPS = 31, 50
Shapes = Sequence[tuple[int, ...]]


def gpt2() -> Shapes:
    """List the 148 tensors of GPT-2 124M."""
    wide, deep = 768, 3072
    norm: Shapes = [(wide,), (wide,)]
    attention: Shapes = [(wide, 3 * wide), (3 * wide,), (wide, wide), (wide,)]
    feed: Shapes = [(wide, deep), (deep,), (deep, wide), (wide,)]
    blocks = 12 * [*norm, *attention, *norm, *feed]
    return [(50257, wide), (1024, wide), *blocks, *norm]


def resnet18() -> Shapes:
    """List the 62 tensors of ResNet-18."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    came = 64
    for goes in (64, 128, 256, 512):
        for old in (came, goes):
            for before in (old, goes):
                shapes += [(goes, before, 3, 3), (goes,), (goes,)]
            if old != goes:
                shapes += [(goes, old, 1, 1), (goes,), (goes,)]
        came = goes
    return [*shapes, (1000, 512), (1000,)]


SETS: dict[str, tuple[Shapes, float]] = {  # with the ratio that is asked for
    "GPT-2 124M, 148 tensors": (gpt2(), 0.85),
    "ResNet-18 11.7M, 62 tensors": (resnet18(), 0.85),
    "10M, 10 x 1,000,000": ([(1000, 1000)] * 10, 0.85),
    "120M, 12 x 10,000,000": ([(10_000, 1000)] * 12, 0.85),
    "10M, 2400 x 4096": ([(4096,)] * 2400, 0.90),
}
BINDS, FREE = "binds in every step", "never binds"


def run(rounds: int = ROUNDS) -> None:
    """Measure time, memory and equality; write guards.md."""
    torch.set_num_threads(1)
    rows = [row for name in SETS for row in _cost(name, rounds)]
    text = (
        "`sg.guard(optimizer, sg.skip_nonfinite(), sg.clip_norm(c))`, its history included, with "
        "AdamW(fused=True), against `clip_grad_norm_(parameters, c)` before the same step. CPU "
        f"time of the process on one thread, medians over {rounds} interleaved rounds after two "
        "that do not count, ratios taken within a round; all arms step the same parameters, "
        "gradients and moments, and gradients are made anew before each, outside the clock. A/A "
        "is clipping by hand a second time over the first: the noise of the ratio. A read is one "
        "`torch.dot` of the gradients as one flat tensor with itself: extra is what an arm takes "
        "over the step without clipping, in reads. c is a tenth of the norm where clipping binds, "
        "ten times the norm where it never does."
    )
    header = (
        "tensors",
        "clipping",
        "bare step, ms",
        "by hand, ms",
        "guard, ms",
        "A/A",
        "guard / by hand",
        "asked",
        "read, ms",
        "extra by hand, reads",
        "extra guard, reads",
    )
    asked = "Extra of the guard asked for GPT-2: <= 1.15 reads."
    tables = [text, markdown(header, rows), asked, *_memory(), *_equality()]
    publish("guards", "Cost of a guard", tables)


# --- Time -----------------------------------------------------------------------------------------


class Stand:
    """Parameters with gradients, and optimizers that share one state, one of them guarded."""

    def __init__(self, shapes: Shapes, share: float) -> None:
        torch.manual_seed(0)
        self.parameters = [torch.nn.Parameter(torch.randn(one) * 0.02) for one in shapes]
        self.flat = torch.randn(sum(one.numel() for one in self.parameters))
        pieces = self.flat.split([one.numel() for one in self.parameters])
        self.source = [one.view(p.shape) for one, p in zip(pieces, self.parameters, strict=True)]
        for one, grad in zip(self.parameters, self.source, strict=True):
            one.grad = grad.clone()
        self.limit = share * float(self.flat.norm())
        self.plain, self.guarded = self._optimizer(), self._optimizer()
        self.plain.step()
        self.guarded.state = self.plain.state
        sg.guard(self.guarded, sg.skip_nonfinite(), sg.clip_norm(self.limit), strict=True)

    def arms(self) -> dict[str, Callable[[], object]]:
        """Return what is measured, by name."""
        return {
            "bare": self.plain.step,
            "hand": self.by_hand,
            "guard": self.guarded.step,
            "again": self.by_hand,
            "read": lambda: torch.dot(self.flat, self.flat),
        }

    def by_hand(self) -> None:
        """Clip as torch does and step."""
        clip_grad_norm_(self.parameters, self.limit)
        self.plain.step()

    def refill(self) -> None:
        """Make the gradients anew: both ways of clipping write to them."""
        grads = [one.grad for one in self.parameters if one.grad is not None]
        torch._foreach_copy_(grads, self.source)

    def _optimizer(self) -> AdamW:
        return AdamW(self.parameters, lr=1e-4, fused=True)


def _cost(name: str, rounds: int) -> list[Row]:
    shapes, asked = SETS[name]
    rows = []
    for clipping, share in ((BINDS, 0.1), (FREE, 10.0)):
        rows.append(_row(name, clipping, asked, seconds(Stand(shapes, share), rounds)))
        gc.collect()  # an optimizer and its hooks hold each other, and gigabytes
    return rows


def seconds(stand: Stand, rounds: int) -> dict[str, list[float]]:
    """Return CPU seconds [rounds] of each arm; every other round goes backward through them."""
    arms = stand.arms()
    found: dict[str, list[float]] = {arm: [] for arm in arms}
    for number in range(rounds + 2):
        for arm in list(arms) if number % 2 else reversed(list(arms)):
            stand.refill()
            begin = time.process_time()
            arms[arm]()
            found[arm].append(time.process_time() - begin)
    return {arm: values[2:] for arm, values in found.items()}


def _row(name: str, clipping: str, asked: float, found: dict[str, list[float]]) -> Row:
    bare, hand, guard, again, read = (
        found[arm] for arm in ("bare", "hand", "guard", "again", "read")
    )
    middle = {arm: f"{1e3 * statistics.median(values):.3g}" for arm, values in found.items()}
    return (
        name,
        clipping,
        *(middle[arm] for arm in ("bare", "hand", "guard")),
        f"{_ratio(again, hand):.3f}",
        f"{_ratio(guard, hand):.3f}",
        f"<= {asked:.2f}",
        middle["read"],
        f"{_ratio(_less(hand, bare), read):.2f}",
        f"{_ratio(_less(guard, bare), read):.2f}",
    )


def _ratio(over: Sequence[float], under: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def _less(whole: Sequence[float], part: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(whole, part, strict=True)]


# --- Memory ---------------------------------------------------------------------------------------


def _memory() -> list[str]:
    """Describe the peak of what a step allocates and frees, beside the size of the gradients."""
    text = (
        "Memory: the peak of what torch's allocator holds during one step above what it held "
        "before, as its profiler reports it, in shares of the bytes of the gradients (a copy of "
        "them would be 1). The moments exist already."
    )
    rows = []
    for name in ("GPT-2 124M, 148 tensors", "10M, 2400 x 4096"):
        stand = Stand(SETS[name][0], 0.1)
        size = stand.flat.nbytes
        loop = AdamW(stand.parameters, lr=1e-4, foreach=False)
        loop.state = stand.plain.state
        for what, optimizer in (("fused", stand.guarded), ("for-loop", loop)):
            rows.append((name, what, size / 1e6, *_peaks(stand, optimizer, size)))
    header = ("tensors", "AdamW", "gradients, MB", "bare step", "by hand", "guard")
    return [text, markdown(header, rows)]


def _peaks(stand: Stand, optimizer: Optimizer, size: int) -> list[str]:
    """Shares of the gradients' bytes that a bare, a hand-clipped and a guarded step allocate."""
    free = AdamW(stand.parameters, lr=1e-4, **_kind(optimizer))
    free.state = stand.plain.state
    if optimizer is not stand.guarded:
        sg.guard(optimizer, sg.skip_nonfinite(), sg.clip_norm(stand.limit), strict=True)

    def by_hand() -> None:
        clip_grad_norm_(stand.parameters, stand.limit)
        free.step()

    shares = []
    for work in (free.step, by_hand, optimizer.step):
        stand.refill()
        shares.append(f"{peak(work) / size:.2g}")
    return shares


def _kind(optimizer: Optimizer) -> dict[str, Any]:  # the arguments of AdamW
    group = optimizer.param_groups[0]
    return {"fused": group["fused"], "foreach": group["foreach"]}


def peak(work: Callable[[], object]) -> int:
    """Return the bytes by which a job raises what torch's allocator holds, at its highest."""
    with tempfile.TemporaryDirectory() as folder:
        with profile(profile_memory=True) as found:
            work()
        path = Path(folder) / "trace.json"
        found.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    held = highest = 0
    for one in sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"]):
        held += one["args"]["Bytes"]
        highest = max(highest, held)
    return highest


# --- Equality -------------------------------------------------------------------------------------


def _equality() -> list[str]:
    """Describe how far a guarded run ends from one that was clipped by hand, or not at all."""
    text = (
        f"Equality: {STEPS} steps on ResNet-18's tensors with new random gradients in each, whose "
        "norms lie from a hundredth to a hundred times the limit, half of them above: the largest "
        "relative difference of a parameter tensor at the end, ‖a - b‖ / ‖b‖, from "
        "`clip_grad_norm_` before the step (asked: <= 1e-6). Beside it the same where nothing ever "
        "binds, from the step without a guard (asked: bit by bit)."
    )
    optimizers: dict[str, Callable[[list[Tensor]], Optimizer]] = {
        "AdamW, fused": lambda ps: AdamW(ps, lr=1e-3, fused=True),
        "AdamW, for-loop": lambda ps: AdamW(ps, lr=1e-3, foreach=False),
        "AdamW, foreach": lambda ps: AdamW(ps, lr=1e-3, foreach=True),
        "SGD with momentum, fused": lambda ps: SGD(ps, lr=1e-2, momentum=0.9, fused=True),
        "SGD with momentum, for-loop": lambda ps: SGD(ps, lr=1e-2, momentum=0.9, foreach=False),
    }
    rows = [
        (
            name,
            f"{_apart(_trained(make, 'guard', 1.0), _trained(make, 'hand', 1.0)):.1e}",
            _bits(_trained(make, "guard", math.inf), _trained(make, "bare", math.inf)),
        )
        for name, make in optimizers.items()
    ]
    return [text, markdown(("optimizer", "from clip_grad_norm_", "where nothing binds"), rows)]


def _trained(make: Callable[[list[Tensor]], Optimizer], arm: str, limit: float) -> list[Tensor]:
    """Parameters after all steps; an infinite limit stands for one that no norm reaches."""
    generator = torch.Generator().manual_seed(0)
    parameters: list[Tensor] = [
        torch.nn.Parameter(torch.randn(one, generator=generator) * 0.02) for one in resnet18()
    ]
    optimizer = make(parameters)
    reached = min(limit, 1e9)
    policies = (sg.skip_nonfinite(), sg.clip_norm(reached))
    guarded = sg.guard(optimizer, *policies, strict=True) if arm == "guard" else nullcontext()
    root = sum(one.numel() for one in parameters) ** 0.5
    with guarded:
        for step in range(STEPS):
            times = 10 ** (2 - 4 * step / (STEPS - 1)) / root
            for one in parameters:
                one.grad = torch.randn(one.shape, generator=generator) * times
            if arm == "hand":
                clip_grad_norm_(parameters, reached)
            optimizer.step()
    return parameters


def _apart(mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    return max(
        float((a - b).detach().double().norm() / b.detach().double().norm())
        for a, b in zip(mine, theirs, strict=True)
    )


def _bits(mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> str:
    same = all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    return "bit by bit" if same else f"differs by {_apart(mine, theirs):.1e}"
