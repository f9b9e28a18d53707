"""Run the cases of test_distributed.py on every rank, and write down what came of each.

Started by torchrun with the folder to write to: CASE.RANK.json, numbers or an error. Everything is
in float64, so that sums in another order cost 1e-15, unless a case says otherwise.
"""

from __future__ import annotations

import faulthandler
import functools
import itertools
import json
import math
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from distributed_layouts import Layout, fresh, fsdp1, layouts, local, mine, unwrapped, whole
from torch import Tensor, nn
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, AdamW, Optimizer
from torch.profiler import ProfilerActivity, profile

import steadygrad as sg
from steadygrad._guard import Handle
from steadygrad.guards.policy import Policy

MAX_NORM = 0.05  # below every norm of these runs
STEPS = 4
BROKEN = 1  # the step at which one rank's gradient is made infinite or NaN
Found = dict[str, Any]  # numbers, lists and strings


# --- The same training, on one process and on many --------------------------------------------


def batches() -> list[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(8, 16, dtype=torch.float64, generator=random),
            torch.randn(8, 8, dtype=torch.float64, generator=random),
        )
        for _ in range(STEPS)
    ]


def backward(model: nn.Module, layout: Layout, step: int, scale: float | Tensor = 1.0) -> None:
    inputs, targets = (layout.part(one) for one in batches()[step])
    outputs = model(inputs)
    (scale * (outputs - targets[:, : outputs.shape[1]]).square().mean()).backward()


def adamw(parameters: Iterator[nn.Parameter], *, fused: bool) -> Optimizer:
    return AdamW(parameters, lr=0.01, fused=fused)


@functools.cache
def reference(name: str, *, skip: int | None = None) -> tuple[list[dict[str, Tensor]], nn.Module]:
    """Norms of each step, by parameter, and the model after training by one process.

    Clipped by torch's own function; at one step nothing is done, where `skip` says so.
    """
    layout = layouts()[name]
    alone = Layout(lambda model: model, model=layout.model)
    model = fresh(layout)
    optimizer = adamw(model.parameters(), fused=False)
    norms = []
    for step in range(STEPS):
        optimizer.zero_grad()
        backward(model, alone, step)
        norms.append({name: one.grad.norm() for name, one in model.named_parameters()})
        clip_grad_norm_(model.parameters(), MAX_NORM)
        if step != skip:
            optimizer.step()
    return norms, model


def laid_out(name: str, *, fused: bool) -> tuple[Layout, nn.Module, Optimizer]:
    layout = layouts()[name]
    model = layout.wrap(fresh(layout))
    return layout, model, adamw(model.parameters(), fused=fused)


def guarded(
    model: nn.Module, layout: Layout, optimizer: Optimizer, max_norm: float = MAX_NORM
) -> Handle:
    policies = (sg.skip_nonfinite(), sg.clip_norm(max_norm))
    return sg.guard(optimizer, *policies, model=model if layout.flat else None, strict=True)


# --- Comparisons ------------------------------------------------------------------------------


def parameter_error(model: nn.Module, right: nn.Module) -> float:
    """The largest difference of a parameter from a model on one process."""
    ours, theirs = whole(model), dict(right.named_parameters())
    assert ours.keys() == theirs.keys(), (ours.keys(), theirs.keys())
    return max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)


def norm_error(model: nn.Module, handle: Handle, right: list[dict[str, Tensor]]) -> float:
    """The largest relative difference of a parameter's norm; a flat parameter holds several."""
    names = [unwrapped(name) for name, _ in model.named_parameters()]
    errors = []
    for event, norms in zip(handle.history, right, strict=True):
        assert len(event.norms) == len(names)
        for name, norm in zip(names, event.norms, strict=True):
            within = name.removesuffix("_flat_param") if name.endswith("_flat_param") else name
            held = [one for other, one in norms.items() if _holds(name, within, other, names)]
            wanted = torch.stack(held).norm()
            errors.append(float((norm - wanted).abs() / wanted))
    return max(errors)


def _holds(name: str, within: str, other: str, names: list[str]) -> bool:
    if not name.endswith("_flat_param"):
        return other == name
    inner = [one.removesuffix("_flat_param") for one in names if len(one) > len(name)]
    return other.startswith(within) and not any(other.startswith(one) for one in inner)


def told(handle: Handle) -> Found:
    """What all ranks must say alike."""
    return {
        "norms": [None if one.norm != one.norm else one.norm for one in handle.history],
        "clipped": [one.clipped for one in handle.history],
        "skipped": [one.skipped for one in handle.history],
        "by": [list(one.by) for one in handle.history],
        "suspects": [[name for name, _ in one.suspects[:1]] for one in handle.history],
    }


# --- Cases ------------------------------------------------------------------------------------


def follows(name: str, *, fused: bool = False) -> Found:
    """Train with a clip that binds; count what goes through process groups in the last step."""
    layout, model, optimizer = laid_out(name, fused=fused)
    norms, right = reference(name)
    handle = guarded(model, layout, optimizer)
    for step in range(STEPS):
        optimizer.zero_grad()
        backward(model, layout, step)
        last = step == STEPS - 1
        with profile(activities=[ProfilerActivity.CPU]) if last else nullcontext() as seen:
            optimizer.step()
    counts = [one.count for one in seen.key_averages() if one.key.startswith("gloo:")]
    return {
        "collectives": sum(counts),
        "norm_error": norm_error(model, handle, norms),
        "parameter_error": parameter_error(model, right),
        **told(handle),
    }


def idles(name: str, *, fused: bool = False) -> Found:
    """Train with a guard that has nothing to do, and without one."""
    runs = []
    for on in (True, False):
        layout, model, optimizer = laid_out(name, fused=fused)
        handle = guarded(model, layout, optimizer, max_norm=1e9) if on else None
        for step in range(STEPS):
            optimizer.zero_grad()
            backward(model, layout, step)
            optimizer.step()
        if handle is not None:
            handle.remove()
        runs.append([local(one.detach()) for one in model.parameters()])
    return {"equal": all(torch.equal(one, other) for one, other in zip(*runs, strict=True))}


def breaks(name: str, value: float, *, place: int = 0, fused: bool = False) -> Found:
    """Make one element on the last rank infinite or NaN: what that rank alone sees at first."""
    layout, model, optimizer = laid_out(name, fused=fused)
    _, right = reference(name, skip=BROKEN)
    handle = guarded(model, layout, optimizer)
    for step in range(STEPS):
        optimizer.zero_grad()
        backward(model, layout, step)
        if step == BROKEN and dist.get_rank() == dist.get_world_size() - 1:
            _spoil(model, place, value)
        optimizer.step()
    return {"parameter_error": parameter_error(model, right), **told(handle)}


def _spoil(model: nn.Module, place: int, value: float) -> None:
    held = [local(one.grad) for one in model.parameters() if one.grad is not None]
    held = [one for one in held if one.numel()]
    held[place].view(-1)[0] = value


def breaks_in_backward(name: str) -> Found:
    """Give one rank an infinite sample: data parallel training spreads it before the step."""
    layout, model, optimizer = laid_out(name, fused=False)
    _, right = reference(name, skip=BROKEN)
    handle = guarded(model, layout, optimizer)
    for step in range(STEPS):
        optimizer.zero_grad()
        here = step == BROKEN and dist.get_rank() == 1
        backward(model, layout, step, scale=float("inf") if here else 1.0)
        optimizer.step()
    return {"parameter_error": parameter_error(model, right), **told(handle)}


def scales(name: str, *, fused: bool, unscale: bool) -> Found:
    """Train under a GradScaler, in float32 by nothing but the scale's exactness: a power of 2."""
    layout, model, optimizer = laid_out(name, fused=fused)
    _, right = reference(name, skip=BROKEN)
    handle = guarded(model, layout, optimizer)
    kind = ShardedGradScaler if layout.flat else torch.amp.GradScaler
    scaler = kind("cpu", init_scale=1024.0)
    for step in range(STEPS):
        optimizer.zero_grad()
        backward(model, layout, step, scale=scaler.scale(torch.ones(())))
        if step == BROKEN and dist.get_rank() == 1:
            _spoil(model, 0, float("inf"))
        if unscale:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    found = {"parameter_error": parameter_error(model, right), "scale": scaler.get_scale()}
    return {**found, **told(handle)}


def agrees_with_one_process(name: str, policy: Callable[[], Policy]) -> Found:
    """Train with a policy that does more than one division, and alike on one process."""
    layout, model, optimizer = laid_out(name, fused=False)
    alone = Layout(lambda model: model, model=layout.model)
    right = fresh(layout)
    theirs = adamw(right.parameters(), fused=False)
    handles = [
        sg.guard(one, policy(), model=other, strict=True)
        for one, other in ((optimizer, model), (theirs, right))
    ]
    for step in range(STEPS):
        for one, other, how in ((optimizer, model, layout), (theirs, right, alone)):
            one.zero_grad()
            backward(other, how, step)
            one.step()
    return {
        "parameter_error": parameter_error(model, right),
        "clipped_alone": [one.clipped for one in handles[1].history],
        **told(handles[0]),
    }


def lacks(name: str, policy: Callable[[], Policy], *, every: bool) -> Found:
    """Leave one rank without the gradient of a vector, or without any."""
    layout, model, optimizer = laid_out(name, fused=False)
    handle = sg.guard(optimizer, policy(), model=model, strict=True)
    for step in range(STEPS):
        optimizer.zero_grad()
        backward(model, layout, step)
        if dist.get_rank() == 1 and step == 1:
            for one in list(model.parameters())[slice(None) if every else slice(1, 2)]:
                one.grad = None
        optimizer.step()
    return told(handle)


def unused_on_one_rank() -> Found:
    """Let DDP find out that one rank has not used a layer."""

    class Branched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.always, self.rarely = nn.Linear(16, 8), nn.Linear(8, 8)

        def forward(self, inputs: Tensor) -> Tensor:
            always = self.always(inputs)
            return self.rarely(always) if dist.get_rank() == 0 else always

    torch.manual_seed(0)
    layout = Layout(lambda model: model, mine)
    wrapped = nn.parallel.DistributedDataParallel(Branched().double(), find_unused_parameters=True)
    optimizer = adamw(wrapped.parameters(), fused=False)
    handle = sg.guard(optimizer, sg.clip_norm(MAX_NORM), strict=True)
    for step in range(STEPS):
        optimizer.zero_grad()
        backward(wrapped, layout, step)
        optimizer.step()
    return told(handle)


def sparse() -> Found:
    """Train an embedding with sparse gradients under DDP, and with dense ones on one process."""
    norms, models = [], []
    for many in (True, False):
        torch.manual_seed(0)
        table = nn.Embedding(12, 4, sparse=many, dtype=torch.float64)
        model = nn.parallel.DistributedDataParallel(table) if many else table
        optimizer = SGD(model.parameters(), lr=0.5)
        handle = sg.guard(optimizer, sg.clip_norm(MAX_NORM), strict=True) if many else None
        seen = []
        for step in range(STEPS):
            places = torch.tensor([0, 3, 3, step, 7, 7, 0, 11])
            optimizer.zero_grad()
            model(mine(places) if many else places).square().sum(1).mean().backward()
            if not many:
                seen.append(float(clip_grad_norm_(model.parameters(), MAX_NORM)))
            optimizer.step()
        norms.append([one.norm for one in handle.history] if handle is not None else seen)
        models.append(table.weight.detach())
    error = max(abs(one - other) / other for one, other in zip(*norms, strict=True))
    return {
        "norm_error": error,
        "parameter_error": float((models[0] - models[1]).abs().max()),
    }


def refuses() -> Found:
    """Guard FSDP1's parameters without a word on their model, or by rows that they have lost."""
    found = {}
    for originals in (True, False):
        model = fsdp1(originals=originals)(fresh(layouts()["fsdp1"]))
        optimizer = adamw(model.parameters(), fused=False)
        found[f"no model, originals {originals}"] = _refusal(optimizer)
        found[f"rows, originals {originals}"] = _refusal(optimizer, sg.clip_agc(), model=model)
        sg.guard(optimizer, model=model).remove()  # what was refused has left nothing behind
    return found


def _refusal(optimizer: Optimizer, *policies: Policy, model: nn.Module | None = None) -> str:
    try:
        sg.guard(optimizer, *policies, model=model)
    except ValueError as error:
        return str(error)
    return "none"


# --- All of them ------------------------------------------------------------------------------

# some parameters lie whole on every rank: torch's fused kernels refuse such a mixture
PARTLY = ("tp-part", "fsdp2-part")
# replicas hold equal gradients: torch spreads what is broken before the step, and none is asked
SPREAD = ("ddp", "fsdp1-unsharded")


def cases() -> dict[str, Callable[[], Found]]:
    """All cases for as many ranks as there are, by name."""
    found: dict[str, Callable[[], Found]] = {}
    for name, layout in layouts().items():
        fused = name not in PARTLY
        found[f"follows/{name}"] = partial(follows, name)
        found[f"idles/{name}"] = partial(idles, name)
        if fused:
            found[f"follows-fused/{name}"] = partial(follows, name, fused=True)
        if name in ("ddp", "fsdp1", "fsdp2", "tp"):
            found[f"idles-fused/{name}"] = partial(idles, name, fused=True)
        if layout.part is mine:
            found[f"breaks-in-backward/{name}"] = partial(breaks_in_backward, name)
        if name not in SPREAD and (name, dist.get_world_size()) != ("hsdp", 4):
            found[f"breaks-inf/{name}"] = partial(breaks, name, math.inf)
            found[f"breaks-nan/{name}"] = partial(breaks, name, math.nan, fused=fused)
        if name in PARTLY:
            found[f"breaks-last/{name}"] = partial(breaks, name, math.inf, place=-1)
    return found | (_of_two() if dist.get_world_size() == 2 else _of_four())


def _of_two() -> dict[str, Callable[[], Found]]:
    found: dict[str, Callable[[], Found]] = {}
    for fused, unscale in itertools.product((False, True), (False, True)):
        # torch shares what ShardedGradScaler finds in the wrong shape for fused kernels, or not
        for name in ("fsdp2", "tp") if fused else ("fsdp1", "fsdp2", "tp"):
            how = f"scales{'-fused' * fused}{'-unscaled' * unscale}/{name}"
            found[how] = partial(scales, name, fused=fused, unscale=unscale)
    for name in ("fsdp2", "fsdp2-uneven", "tp", "tp-sequence"):
        found |= _policies(name)
    for policy in (lambda: sg.clip_norm(MAX_NORM), sg.clip_agc):
        for name, every in itertools.product(("fsdp2", "tp-part"), (False, True)):
            how = f"lacks-{'all' if every else 'one'}-{policy().name}/{name}"
            found[how] = partial(lacks, name, policy, every=every)
    return found | {"unused/ddp": unused_on_one_rank, "sparse/ddp": sparse, "refuses": refuses}


def _of_four() -> dict[str, Callable[[], Found]]:
    return _policies("fsdp2-tp")


def _policies(name: str) -> dict[str, Callable[[], Found]]:
    policies = {
        "agc": sg.clip_agc,
        "adagc": lambda: sg.clip_adagc(absolute=MAX_NORM, relative=1.0, warmup=2),
        "value": lambda: sg.clip_value(1e-3),
    }
    return {
        f"{how}/{name}": partial(agrees_with_one_process, name, policy)
        for how, policy in policies.items()
    }


def main(folder: Path, only: str = "") -> None:
    """Run them in turn; after one that fails on this rank others can't be trusted, and none run."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # torch's own, on old interfaces
    dist.init_process_group("gloo", timeout=timedelta(seconds=20))
    for name, case in cases().items():
        if only not in name:
            continue
        faulthandler.dump_traceback_later(60, exit=True)  # says where a rank waits for nobody
        try:
            found = case()
        except Exception:
            found = {"error": traceback.format_exc()}
        target = folder / f"{name.replace('/', '.')}.{dist.get_rank()}.json"
        target.write_text(json.dumps(found))
        if "error" in found:
            os._exit(1)  # without waiting for the others, who may wait for this one
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
