"""What is known of a run that is not a number in a step: wiring, optimizers, the order of calls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from steadygrad.core.steps import Row
from steadygrad.taps.held import Held
from steadygrad.taps.watcher import Watcher

Facts = dict[str, Any]  # JSON-like, see core.record.Facts


def facts_of(watcher: Watcher, rows: Sequence[Row]) -> Facts:
    """Everything that detectors over many steps want to know besides the readings."""
    known = [one for one in watcher.held.values() if one.optimizer() is not None]
    facts: Facts = {
        "run": {"steps": watcher.step + 1, "compiled": watcher.compiled},
        "optimizers": [_settings(one) for one in known],
        "wiring": _wiring(known, watcher.models, watcher.step + 1),
        "blind": dict(watcher.blind),
    }
    stale = [one.stale for one in known if one.stale.steps]
    if stale:
        worst = max(stale, key=lambda one: one.stale / one.steps)
        facts["stale"] = {"steps": worst.steps, "stale": worst.stale, "line": ["", 0]}
    facts |= _clipping(watcher, rows)
    if watcher.scaler is not None:
        facts["scaler"] = watcher.scaler
    return facts


def _settings(one: Held) -> Facts:
    optimizer = one.optimizer()
    groups = [] if optimizer is None else optimizer.param_groups
    first = groups[0] if groups else {}
    return {
        "name": "optimizer" if one.place == 0 else f"optimizer {one.place + 1}",
        "type": type(optimizer).__name__,
        "lr": max((_number(group.get("lr")) for group in groups), default=math.nan),
        "initial_lr": max((_aim(group) for group in groups), default=math.nan),
        "momentum": _number(first.get("momentum", 0.0)),
        "betas": [_number(beta) for beta in first.get("betas", ())],
        "eps": _number(first.get("eps")),
        "weight_decay": _number(first.get("weight_decay", 0.0)),
        "parameters": len(one.parameters),
        "dtypes": sorted({str(p.dtype).removeprefix("torch.") for p in one.parameters}),
    }


def _aim(group: Mapping[str, Any]) -> float:
    """The lr that an attached schedule leads to; the group's own where there is none."""
    found = [_number(group.get(key)) for key in ("initial_lr", "max_lr", "lr")]
    return max((one for one in found if math.isfinite(one)), default=math.nan)


def _number(value: Any) -> float:
    """A setting as a float; NaN where it is none, or lies on a device."""
    if isinstance(value, torch.Tensor):
        return float(value) if value.device.type == "cpu" and value.numel() == 1 else math.nan
    return float(value) if isinstance(value, (int, float)) else math.nan


def _wiring(known: Sequence[Held], models: Mapping[str, nn.Module], steps: int) -> Facts:
    """Parameters by what keeps them from being trained: four sets that have nothing in common."""
    stepped = {id(p) for one in known for p in one.parameters}
    frozen, outside, count = [], [], 0
    for prefix, model in models.items():
        front = f"{prefix}." if prefix else ""
        for name, parameter in model.named_parameters():
            count += 1
            if not parameter.requires_grad:
                frozen.append(front + name)
            elif id(parameter) not in stepped and parameter.grad is not None:
                outside.append(front + name)
    mine = [(s, p, seen, some) for one in known for s, p, seen, some in _presence(one)]
    wants = [row for row in mine if row[1]]
    return {
        "steps": steps,
        "model_parameters": count,
        "frozen": frozen,
        "outside": outside,
        "no_gradient": [name for name, _, seen, _ in wants if not seen],
        "zero": [name for name, _, seen, some in wants if seen and not some],
        "expected_zero": [],
    }


def _presence(one: Held) -> list[tuple[str, bool, bool, bool]]:
    """Name, whether it wants a gradient, whether it ever had one, whether one was not zero."""
    return [
        (site.name, parameter.requires_grad, bool(seen), bool(some))
        for site, parameter, seen, some in zip(
            one.sites, one.parameters, one.seen, one.nonzero, strict=True
        )
    ]


def _clipping(watcher: Watcher, rows: Sequence[Row]) -> Facts:
    order = watcher.clips.order
    facts: Facts = {}
    if order.calls:
        facts["clip_order"] = {
            "steps": order.calls,
            "after_step": order.after_step,
            "before_backward": 0,
            "before_unscale": order.before_unscale,
            "line": list(order.line),
        }
    bound = [row for row in rows if "max_norm" in row.read and "norm" in row.read]
    if bound:
        pairs = [(row.read["norm"][0], row.read["max_norm"][0]) for row in bound]
        finite = [(n, m) for n, m in pairs if math.isfinite(n) and math.isfinite(m)]
        facts["clipping"] = {
            "steps": len(pairs),
            "clipped": sum(bool(n > m) for n, m in pairs),
            "largest": max((float(n) for n, _ in finite), default=0.0),
            "threshold": float(finite[-1][1]) if finite else math.inf,
        }
    return facts


def optimizers_of(watcher: Watcher) -> list[Optimizer]:
    """The optimizers that have stepped and are still there."""
    return [one for ref in watcher.held.values() if (one := ref.optimizer()) is not None]
