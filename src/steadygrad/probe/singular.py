"""Divisions by nearly nothing: the forward pass is finite and small, the gradient is enormous.

A zero vector through F.normalize comes out as zero, and its gradient is multiplied by 1 / eps. So
it is in a norm layer with a tiny eps. Whether that matters is asked of the gradient itself: it must
arrive there, and what leaves must reach a parameter.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.autograd.graph import Node

from steadygrad.probe.first_backward import claimed, kept, place
from steadygrad.probe.graph import reachable
from steadygrad.probe.trace import Trace
from steadygrad.probe.tree import is_signal

DIVISION = re.compile(r"^Div")
NORMALISES = re.compile(r"^Native(Layer|Group)Norm")
NORM = re.compile(r"^(layer|batch|group|instance|rms)_norm$")

Gradients = tuple[Tensor | None, ...]


class Amplification:
    """Note, during a backward pass, divisions that blow up the gradient of a vanishing numerator.

    Entered, it gives the list that will hold the facts. `smallest` is the denominator below which
    a division is looked at, and `smallest_norm` the deviation below which a norm layer is; the
    gradient must grow by their inverse (chosen by us: eps of 1e-5 in a norm multiplies by 316).
    """

    def __init__(
        self, trace: Trace, root: Node, *, smallest: float = 1e-6, smallest_norm: float = 1e-5
    ) -> None:
        self.trace = trace
        self.smallest = smallest
        self.smallest_norm = smallest_norm
        self.nodes = reachable(root)
        self.handles: list[Any] = []  # torch's RemovableHandle

    def __enter__(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        above = claimed(self.trace, self.nodes)
        for node in self.nodes:
            limit = self._limit(node)
            if limit and _is_suspect(node, limit):
                hook = self._hook(node, above.get(node, node), limit, found)
                self.handles.append(node.register_hook(hook))
        return found

    def __exit__(self, *raised: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _limit(self, node: Node) -> float:
        if DIVISION.match(node.name()):
            return self.smallest
        return self.smallest_norm if NORMALISES.match(node.name()) else 0.0

    def _hook(
        self, node: Node, op: Node, limit: float, found: list[dict[str, Any]]
    ) -> Callable[[Gradients, Gradients], None]:
        def hook(leaving: Gradients, arriving: Gradients) -> None:
            if leaving[0] is None or arriving[0] is None:
                return
            before, after = _peak(arriving[0]), _peak(leaving[0])
            if 0 < before < math.inf and before < limit * after < math.inf and _vanishes(node):
                row = {"gain": after / before, "leaving": after, "denominator": _least(node)}
                rows = {"rows": _rows(leaving[0])}
                found.append({**place(self.trace, op, node), **row, **rows})

        return hook


def mattering(
    singular: list[dict[str, Any]], logs: Mapping[str, float], *, kept_share: float = 1e-3
) -> list[dict[str, Any]]:
    """Keep what reaches a parameter: one has a gradient of at least a thousandth of what left.

    A mean over an empty mask divides zero by eps too, but the mask before it is zero. `logs` are
    log10 norms of the parameters' gradients.
    """
    largest = max(logs.values(), default=-math.inf)
    return [row for row in singular if largest >= math.log10(kept_share * row["leaving"])]


def _peak(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0


def _is_suspect(node: Node, limit: float) -> bool:
    over = _denominator(node)
    return over is not None and over.numel() > 1 and 0 < _least(node) < limit


def _denominator(node: Node) -> Tensor | None:
    """What a node divides by: a norm layer keeps the inverse of its deviation."""
    if DIVISION.match(node.name()):
        over = kept(node, "_saved_other")
    else:
        inverse = kept(node, "_saved_result2")
        over = None if inverse is None else 1 / inverse
    return over if over is not None and is_signal(over) else None


def _least(node: Node) -> float:
    over = _denominator(node)
    return math.nan if over is None else float(over.abs().min())


def _vanishes(node: Node) -> bool:
    """Whether the numerator is no larger than the smallest denominator there."""
    if not DIVISION.match(node.name()):
        return True
    over, under = kept(node, "_saved_other"), kept(node, "_saved_self")
    if under is None or over is None:
        return False
    at = over.abs() <= 1.001 * over.abs().min()
    return bool(((under.abs() <= over.abs()) | ~at).all())


def _rows(gradient: Tensor) -> list[int]:
    """Samples in which the gradient is within a decade of its peak, at most five."""
    size = gradient.abs().reshape(len(gradient), -1).amax(1) if gradient.dim() else gradient.abs()
    return [int(i) for i in (size > 0.1 * size.max()).nonzero().flatten()[:5]]


def below_eps(trace: Trace) -> list[dict[str, Any]]:
    """Norm layers whose input's variance is below their eps, so that they restore no scale."""
    found = []
    for op in trace.ops.values():
        eps = getattr(trace.calls[op.call].module, "eps", None) if op.call >= 0 else None
        sources = [trace.ops[node] for node in op.sources if node in trace.ops]
        if not NORM.match(op.name) or not isinstance(eps, float) or not sources:
            continue
        if sources[0].log_rms < 0.5 * math.log10(eps) and math.isfinite(sources[0].log_rms):
            gain = -0.5 * math.log10(eps + 10 ** (2 * sources[0].log_rms))
            found.append({"module": trace.name_of(op.call), "eps": eps, "log_gain": gain})
            found[-1]["log_rms"] = sources[0].log_rms
    return found
