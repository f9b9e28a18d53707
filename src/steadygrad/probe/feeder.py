"""Name the layer that an op gets its signal from."""

from __future__ import annotations

import re

from torch.autograd.graph import Node

from steadygrad.probe.trace import Trace

WEIGHT = re.compile(
    r"^(__)?(linear|bilinear|conv|r?matmul|b?mm|addmm|einsum|embedding|lstm|gru|rnn)"
)


def feeder(trace: Trace, node: Node | None, *, limit: int = 500) -> str:
    """Name of the module of the nearest weight op before a node; '' when there is none."""
    stack = before(trace, node) if node is not None else []
    seen = set(stack)
    while stack and len(seen) < limit:
        op = trace.ops.get(stack[0])
        if op is not None and WEIGHT.match(op.name) and trace.name_of(op.call):
            return trace.name_of(op.call)
        fresh = [n for n in before(trace, stack.pop(0)) if n not in seen]
        seen.update(fresh)
        stack += fresh
    return ""


def before(trace: Trace, node: Node) -> list[Node]:
    """Nodes that an op was given, or, of a node that no op claimed, its children."""
    op = trace.ops.get(node)
    if op is not None and op.sources:
        return list(op.sources)
    return [child for child, _ in node.next_functions if child is not None]
