"""Dropout that leaves nothing: p = 1, or the share to keep where torch takes the share to drop."""

from __future__ import annotations

import math
import re
from typing import Any

from torch import nn

from steadygrad.probe.subject import Readings, Subject
from steadygrad.probe.trace import Op, Trace

DROPOUT = re.compile(r"dropout")


def dropped(subject: Subject) -> Readings:
    """Read the fact `dropped`: dropouts whose output is all zero though their input is not."""
    trace = subject.trace
    found = [_fact(trace, op) for op in trace.ops.values() if _drops_all(trace, op)]
    return Readings(facts={"dropped": found})


def _drops_all(trace: Trace, op: Op, *, many: int = 256) -> bool:
    """Whether a dropout dropped all, and not by chance: p = 1, or `many` elements where p is hid.

    A p of 0.9 leaves none of 256 once in 5e11 times.
    """
    if not DROPOUT.search(op.name) or op.log_norm != -math.inf or not op.numel:
        return False
    before = [trace.ops[node].log_norm for node in op.sources if node in trace.ops]
    rate = _rate(trace, op)
    certain = op.name == "dropout" and op.numel >= many if math.isnan(rate) else rate >= 1
    return certain and -math.inf not in before


def _rate(trace: Trace, op: Op) -> float:
    """Probability of the dropout module that called the op; NaN where it was none."""
    module = trace.calls[op.call].module if op.call >= 0 else None
    return float(module.p) if isinstance(module, nn.modules.dropout._DropoutNd) else math.nan


def _fact(trace: Trace, op: Op) -> dict[str, Any]:
    module = trace.name_of(op.call) if op.call >= 0 else None
    return {"module": module, "op": op.name, "p": _rate(trace, op), "line": list(op.line)}
