"""Find the backward op that made a finite gradient NaN or infinite, and ops that blow it up.

Hooks on the nodes of the live graph see what arrives and what leaves. The first node, in the order
of execution, that gets finite gradients and sends broken ones on is the culprit; the values it kept
from the forward pass say why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from steadygrad.probe.feeder import feeder
from steadygrad.probe.first_forward import broadcasts
from steadygrad.probe.graph import reachable
from steadygrad.probe.trace import Trace
from steadygrad.probe.tree import is_signal

Gradients = tuple[Tensor | None, ...]
Pull = Callable[[], object]  # runs the backward pass


def first_backward(trace: Trace, root: Node, pull: Pull) -> dict[str, Any]:
    """Run the backward pass and return the first node that broke a finite gradient; {} for none."""
    found: list[dict[str, Any]] = []
    nodes = reachable(root)
    above = claimed(trace, nodes)

    def watch(node: Node) -> Callable[[Gradients, Gradients], None]:
        def hook(leaving: Gradients, arriving: Gradients) -> None:
            bad = [g for g in leaving if _is_broken(g)]
            if bad and bad[0] is not None and not any(_is_broken(g) for g in arriving):
                found.append(_culprit(trace, above.get(node, node), node, bad[0], arriving))

        return hook

    handles = [node.register_hook(watch(node)) for node in nodes if node.next_functions]
    try:
        pull()
    finally:
        for handle in handles:
            handle.remove()
    return {**found[0], "others": len(found) - 1} if found else {}


def place(trace: Trace, node: Node, inner: Node) -> dict[str, Any]:
    """Name the op of a node, its module (None: in the loss), line, and the layer before it."""
    op = trace.ops.get(node)
    call = trace.call_of(node)
    return {
        "op": op.name if op else inner.name(),
        "node": inner.name(),
        "module": trace.name_of(call) if call >= 0 else None,
        "line": list(op.line) if op else ["", 0],
        "feeder": feeder(trace, node),
    }


def claimed(trace: Trace, nodes: Sequence[Node]) -> dict[Node, Node]:
    """Map each node inside a composite function to the node of the op that it is part of."""
    above: dict[Node, Node] = {}
    for node in reversed(nodes):  # parents before children
        mine = node if node in trace.ops else above.get(node, node)
        for child, _ in node.next_functions:
            if child is not None and child not in trace.ops:
                above.setdefault(child, mine)
    return above


def _culprit(
    trace: Trace, op: Node, node: Node, bad: Tensor, arriving: Gradients
) -> dict[str, Any]:
    index = _first_broken(bad)
    came = next((g for g in arriving if g is not None and g.shape == bad.shape), None)
    return {
        **place(trace, op, node),
        "index": list(index),
        "result": f"{float(bad[index]):g}",
        "arriving": None if came is None else float(came[index]),
        "values": _kept(node, bad, index),
        "broken_before": any(_is_broken(t) for t in _kept_tensors(node).values()),
    }


def _is_broken(tensor: Tensor | None) -> bool:
    if tensor is None or not is_signal(tensor):
        return False
    return not bool(torch.isfinite(tensor).all())


def _first_broken(tensor: Tensor) -> tuple[int, ...]:
    spot = int((~torch.isfinite(tensor)).flatten().to(torch.uint8).argmax())
    return tuple(int(i) for i in torch.unravel_index(torch.tensor(spot), tensor.shape))


def _kept(node: Node, bad: Tensor, index: tuple[int, ...]) -> dict[str, str]:
    """What the node kept of the forward pass, at the place that broke."""
    return {
        name: f"{float(tensor.expand(bad.shape)[index]):g}"
        if broadcasts(tensor.shape, bad.shape)
        else f"{tensor.numel()} values, {float(tensor.min()):.4g} to {float(tensor.max()):.4g}"
        for name, tensor in _kept_tensors(node).items()
        if tensor.numel()
    }


def _kept_tensors(node: Node) -> dict[str, Tensor]:
    names = [name for name in dir(node) if name.startswith("_saved_")]
    found = {_label(name): kept(node, name) for name in names}
    return {label: t for label, t in found.items() if t is not None and is_signal(t)}


def _label(name: str) -> str:
    label = name.removeprefix("_saved_")
    return "input" if label == "self" else label


def kept(node: Node, name: str) -> Tensor | None:
    """Return a tensor that a node saved for its backward pass; None where it has none."""
    try:
        saved = getattr(node, name, None)
    except RuntimeError:  # it was freed
        return None
    return saved.detach() if isinstance(saved, Tensor) else None
