"""Read what the data look like where the first layer takes them in."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from steadygrad.probe.feeder import WEIGHT
from steadygrad.probe.graph import leaves
from steadygrad.probe.nonfinite import given
from steadygrad.probe.subject import Readings, Subject
from steadygrad.probe.trace import SAMPLED, Trace

NORM = re.compile(r"norm$")
SAME = re.compile(
    r"^(clone|view|reshape|flatten|transpose|permute|squeeze|unsqueeze|contiguous|to|t)$"
)
VIEW = re.compile(r"^(view|reshape|flatten|transpose|permute|squeeze|unsqueeze|contiguous)$")


def data(subject: Subject) -> Readings:
    """Read the fact `inputs`: the scale of each float input, its features, and its first layer."""
    consumers = _consumers(subject.trace)
    with torch.no_grad():
        found = [
            _input(subject.trace, consumers, name, tensor)
            for name, tensor in given(subject)
            if tensor.numel()
        ]
    return Readings(facts={"inputs": found})


def _consumers(trace: Trace) -> dict[Node, list[Node]]:
    found: dict[Node, list[Node]] = {}
    for node, op in trace.ops.items():
        for source in op.sources:
            found.setdefault(source, []).append(node)
    return found


def _input(
    trace: Trace, consumers: dict[Node, list[Node]], name: str, tensor: Tensor
) -> dict[str, Any]:
    values = tensor.detach()
    finite = values[torch.isfinite(values)].double()
    fact: dict[str, Any] = {"name": name, "shape": list(tensor.shape), "layer": {}}
    if not finite.numel():
        return fact
    fact |= {
        "rms": float(finite.square().mean().sqrt()),
        "mean": float(finite.mean()),
        "std": float(finite.std(unbiased=False)),
        "peak": float(finite.abs().max()),
        "whole": bool((finite[:SAMPLED] == finite[:SAMPLED].round()).all()),
        "constant": bool((finite == finite[0]).all()),
    }
    if tensor.grad_fn is not None:
        fact["layer"] = _layer(trace, consumers, tensor.grad_fn)
    return fact | _features(values)


def _features(values: Tensor) -> dict[str, Any]:
    """Root mean square of the largest feature and of the median one that is not constant zero."""
    if values.dim() < 2 or not bool(torch.isfinite(values).all()):
        return {}
    axis = 1 if values.dim() in (2, 4, 5) else -1
    columns = values.double().movedim(axis, -1).reshape(-1, values.shape[axis])
    size = columns.square().mean(0).sqrt()
    seen = size[size > 0]
    if len(seen) < 2:
        return {}
    return {
        "feature": int(size.argmax()),
        "feature_rms": float(size.max()),
        "median_rms": float(seen.median()),
        "constant_features": int((columns == columns[:1]).all(0).sum()),
    }


def _layer(trace: Trace, consumers: dict[Node, list[Node]], start: Node) -> dict[str, Any]:
    """The weight op that takes an input in: RMS before and after, and whether a norm is near.

    {} when the first thing on every way is a norm, or nothing with a parameter is met.
    """
    stack, seen = [(start, True)], {start}
    while stack:
        node, raw = stack.pop(0)
        for after in consumers.get(node, []):
            op = trace.ops[after]
            if NORM.search(op.name) or after in seen or len(seen) > 200:
                continue
            seen.add(after)
            if WEIGHT.match(op.name) and leaves(after, set(op.sources)):
                return _taken_in(trace, consumers, node, after, raw)
            stack.append((after, raw and bool(SAME.match(op.name))))
    return {}


def _taken_in(
    trace: Trace, consumers: dict[Node, list[Node]], before: Node, node: Node, raw: bool
) -> dict[str, Any]:
    op = trace.ops[node]
    entering = trace.ops[before].log_rms if before in trace.ops else math.nan
    return {
        "module": trace.name_of(op.call),
        "raw": raw,
        "rms_in": _power(entering),
        "rms_out": _power(op.log_rms),
        "normed": _meets_norm(trace, consumers, node),
    }


def _power(log: float) -> float | None:
    return None if not log < 300.0 else 10.0**log


def _meets_norm(trace: Trace, consumers: dict[Node, list[Node]], node: Node) -> bool:
    """Whether what a layer puts out goes straight into a norm."""
    stack = list(consumers.get(node, []))
    while stack:
        after = stack.pop()
        if NORM.search(trace.ops[after].name):
            return True
        if VIEW.match(trace.ops[after].name):
            stack += consumers.get(after, [])
    return False
