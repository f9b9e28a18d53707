"""How far activations are from the largest number of their dtype, and exponentials from it."""

from __future__ import annotations

import math
import re
from typing import Any

import torch

from steadygrad.probe.feeder import feeder
from steadygrad.probe.trace import Op, Trace

HALF = (torch.float16, torch.bfloat16)
SCORES = re.compile(r"softmax|masked_fill|where|attention")
EXPONENTIAL = re.compile(r"^(exp_?|expm1|exp2|cosh|sinh)$")
PASSES = re.compile(
    r"^(__getitem__|chunk|split|unbind|select|squeeze|unsqueeze|view|reshape|r?mul|neg)"
)
LAYER = re.compile(r"^(linear|conv)")


def half(trace: Trace) -> list[dict[str, Any]]:
    """Share of the range of half precision that each module uses, the fullest first."""
    shares: dict[str, dict[str, Any]] = {}
    masked = {n for op in trace.ops.values() if SCORES.search(op.name) for n in op.sources}
    for node, op in trace.ops.items():
        if op.dtype not in HALF or node in masked or SCORES.search(op.name):
            continue
        limit = torch.finfo(op.dtype).max
        share = math.inf if op.log_norm == math.inf else op.peak / limit
        name = trace.name_of(op.call)
        if share > shares.get(name, {"share": -1.0})["share"]:
            row = {"module": name, "op": op.name, "share": share, "peak": op.peak}
            row |= {"dtype": str(op.dtype).removeprefix("torch."), "limit": limit}
            shares[name] = row | {"outside": op.call < 0, "line": list(op.line)}
    return sorted(shares.values(), key=lambda row: (-row["share"], row["module"] == ""))[:5]


def exponentials(trace: Trace) -> list[dict[str, Any]]:
    """Exponentials: log10 of the norm of what they put out, and of the RMS of a free exponent."""
    found = []
    for node, op in trace.ops.items():
        if EXPONENTIAL.match(op.name) and op.numel != 0:
            row: dict[str, Any] = {"op": op.name, "log_norm": op.log_norm, "line": list(op.line)}
            row |= {"module": trace.name_of(op.call) if op.call >= 0 else None}
            found.append(row | {"feeder": feeder(trace, node), "free": _free_exponent(trace, op)})
    return sorted(found, key=lambda row: -row["log_norm"])[:10]


def _free_exponent(trace: Trace, op: Op) -> float | None:
    """log10 of the RMS of an exponent that comes straight from a layer; None for another."""
    before = [trace.ops[node] for node in op.sources if node in trace.ops]
    size = before[0].log_rms if before else None
    while before and PASSES.match(before[0].name):
        before = [trace.ops[node] for node in before[0].sources if node in trace.ops]
    return size if before and LAYER.match(before[0].name) else None
