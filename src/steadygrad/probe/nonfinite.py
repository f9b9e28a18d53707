"""Read what is NaN or infinite before the first step, and which op made it so.

In the healthy case this costs one backward pass and a norm per tensor. Only when outputs, loss or
gradients are broken is the pass run again under a microscope: an infinity without consequence, as
in a mask, is nobody's business.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from steadygrad.probe.feeder import feeder
from steadygrad.probe.first_backward import claimed, first_backward, kept, place
from steadygrad.probe.first_forward import first_forward
from steadygrad.probe.graph import reachable
from steadygrad.probe.subject import Readings, Subject
from steadygrad.probe.trace import Op, Trace, log10_norm
from steadygrad.probe.tree import is_signal, tensors

HALF = (torch.float16, torch.bfloat16)
SCORES = re.compile(r"softmax|masked_fill|where|attention")
SHRINKS = re.compile(r"^Div")
EXPONENTIAL = re.compile(r"^(exp_?|expm1|exp2|cosh|sinh)$")
PASSES = re.compile(
    r"^(__getitem__|chunk|split|unbind|select|squeeze|unsqueeze|view|reshape|r?mul|neg)"
)
LAYER = re.compile(r"^(linear|conv)")
NORM = re.compile(r"^(layer|batch|group|instance|rms)_norm$")


def first_nonfinite(subject: Subject) -> Readings:
    """Read the facts `nonfinite`, `norm_overflow`, `half`, `singular`, and `exponentials`.

    `nonfinite` holds the broken data, parameters, and buffers, whether outputs, loss, and gradients
    are broken, and the first guilty op of the forward and of the backward pass.
    """
    facts: dict[str, Any] = {
        "data": [_tensor(name, t) for name, t in given(subject) if _broken(t)],
        "parameters": [_tensor(n, p) for n, p in subject.model.named_parameters() if _broken(p)],
        "buffers": [_tensor(n, b) for n, b in subject.model.named_buffers() if _broken(b)],
        "outputs": any(_broken(t) for one in subject.trace.results for t in tensors(one)),
        "nan_outputs": any(_nan(t) for one in subject.trace.results for t in tensors(one)),
        "loss": None if subject.loss_value is None else _broken(subject.loss_value),
        "gradients": [],
        "no_gradient": False,
        "forward": {},
        "backward": {},
    }
    readings = Readings(facts={"nonfinite": facts})
    readings.facts["half"] = _half(subject.trace)
    readings.facts["exponentials"] = _exponentials(subject.trace)
    readings.facts["below_eps"] = _below_eps(subject.trace)
    _read_gradients(subject, facts, readings)
    if facts["nan_outputs"] or facts["loss"] or (facts["loss"] is None and facts["outputs"]):
        facts["forward"] = _forward(subject)
    return readings


def _forward(subject: Subject) -> dict[str, Any]:
    """The first guilty op of the forward pass, with the layer that feeds it."""
    found, trace = first_forward(subject), subject.trace
    broken = (n for n, op in trace.ops.items() if op.log_norm == math.inf)
    same = [n for n in broken if found and trace.ops[n].name == found["op"]]
    return {**found, "feeder": feeder(trace, same[0])} if same else found


def given(subject: Subject) -> Iterator[tuple[str, Tensor]]:
    """Yield the floating tensors that the outermost module calls were given, named by place."""
    number = 0
    for call in subject.trace.calls:
        if call.parent == -1 and call.inputs is not None:
            for tensor in tensors(call.inputs):
                if is_signal(tensor):
                    yield f"input {number}", tensor
                number += 1


# --- Gradients ----------------------------------------------------------------------------------


def _read_gradients(subject: Subject, facts: dict[str, Any], readings: Readings) -> None:
    """Take the gradients of loss or outputs, and look closer when one is broken."""
    root = _root(subject)
    named = {n: p for n, p in subject.model.named_parameters() if p.requires_grad and is_signal(p)}
    if root is None or root.grad_fn is None or not named:
        readings.blind["norm_overflow"] = "no gradient leads from the loss to a parameter"
        readings.facts["singular"] = []
        return
    noise = torch.ones_like(root) if root.numel() == 1 else subject.noise(root)

    def pull() -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(
            root, list(named.values()), noise, retain_graph=True, allow_unused=True
        )

    with _Amplification(subject.trace, root.grad_fn) as singular:
        found = dict(zip(named, pull(), strict=True))
    logs = {name: log10_norm(_dense(g)) for name, g in found.items() if g is not None}
    facts["gradients"] = [name for name, size in logs.items() if size == math.inf]
    facts["no_gradient"] = bool(logs) and all(size == -math.inf for size in logs.values())
    readings.facts["norm_overflow"] = _overflowing(named, logs)
    readings.facts["singular"] = singular
    if facts["gradients"] and not facts["loss"]:
        facts["backward"] = first_backward(subject.trace, root.grad_fn, pull)
        if facts["backward"].get("broken_before"):
            facts["forward"] = _forward(subject)


def _root(subject: Subject) -> Tensor | None:
    """The loss; where none was given, one that the model itself computed, or else its output."""
    if subject.loss_value is not None:
        return subject.loss_value
    scalars = [t for t in subject.outputs if t.dim() == 0]
    return next(iter(scalars + subject.outputs), None)


def _dense(gradient: Tensor) -> Tensor:
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def _overflowing(named: dict[str, Any], logs: dict[str, float]) -> list[dict[str, Any]]:
    """Parameters whose finite gradient has an L2 norm that its own arithmetic cannot hold.

    torch sums squares in float32 (float64 for itself) and returns the norm in the gradient's dtype.
    """
    found = []
    for name, size in logs.items():
        dtype = named[name].dtype
        squares = torch.float64 if dtype is torch.float64 else torch.float32
        limit = min(_log_max(dtype), 0.5 * _log_max(squares))
        if limit < size < math.inf:
            row = {"name": name, "log_norm": size, "limit": limit}
            found.append(row | {"dtype": str(dtype).removeprefix("torch.")})
    return sorted(found, key=lambda row: -row["log_norm"])


def _log_max(dtype: torch.dtype) -> float:
    return math.log10(torch.finfo(dtype).max)


# --- Divisions by nearly nothing ----------------------------------------------------------------


class _Amplification:
    """Note, during a backward pass, divisions that blow up the gradient of a vanishing numerator.

    Entered, it gives the list that will hold the facts.
    """

    def __init__(self, trace: Trace, root: Node, *, smallest: float = 1e-6) -> None:
        self.trace = trace
        self.smallest = smallest
        self.nodes = reachable(root)
        self.handles: list[Any] = []  # torch's RemovableHandle

    def __enter__(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        above = claimed(self.trace, self.nodes)
        for node in self.nodes:
            if SHRINKS.match(node.name()) and self._is_suspect(node):
                hook = self._hook(node, above.get(node, node), found)
                self.handles.append(node.register_hook(hook))
        return found

    def __exit__(self, *raised: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _is_suspect(self, node: Node) -> bool:
        over = kept(node, "_saved_other")
        if over is None or over.numel() < 2 or not is_signal(over):
            return False
        least = float(over.abs().min())
        return 0 < least < self.smallest

    def _hook(
        self, node: Node, op: Node, found: list[dict[str, Any]]
    ) -> Callable[[Any, Any], None]:
        def hook(leaving: tuple[Tensor | None, ...], arriving: tuple[Tensor | None, ...]) -> None:
            over, under = kept(node, "_saved_other"), kept(node, "_saved_self")
            if leaving[0] is None or arriving[0] is None or over is None:
                return
            before, after = float(arriving[0].abs().max()), float(leaving[0].abs().max())
            if not 0 < before < math.inf or not math.isfinite(after):
                return
            size = after / before
            if size * self.smallest > 1 and _vanishes(under, over):
                row: dict[str, Any] = {"gain": size, "denominator": float(over.abs().min())}
                row["rows"] = _rows(leaving[0])
                found.append({**place(self.trace, op, node), **row})

        return hook


def _vanishes(under: Tensor | None, over: Tensor) -> bool:
    """Whether the numerator is no larger than the smallest denominator there."""
    if under is None:
        return False
    at = over.abs() <= 1.001 * over.abs().min()
    return bool(((under.abs() <= over.abs()) | ~at).all())


def _rows(gradient: Tensor) -> list[int]:
    """Samples in which the gradient is within a decade of its peak, at most five."""
    size = gradient.abs().reshape(len(gradient), -1).amax(1) if gradient.dim() else gradient.abs()
    return [int(i) for i in (size > 0.1 * size.max()).nonzero().flatten()[:5]]


def _below_eps(trace: Trace) -> list[dict[str, Any]]:
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


# --- What half precision and exponentials come to ------------------------------------------------


def _half(trace: Trace) -> list[dict[str, Any]]:
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


def _exponentials(trace: Trace) -> list[dict[str, Any]]:
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


# --- Broken tensors -------------------------------------------------------------------------------


def _broken(tensor: Tensor) -> bool:
    return is_signal(tensor) and log10_norm(tensor.detach()) == math.inf


def _nan(tensor: Tensor) -> bool:
    return is_signal(tensor) and bool(torch.isnan(tensor.detach()).any())


def _tensor(name: str, tensor: Tensor) -> dict[str, Any]:
    """Count what is broken in a tensor, and say where."""
    tensor = tensor.detach()
    bad = ~torch.isfinite(tensor)
    places = bad.nonzero()[:5].tolist()
    return {
        "name": name,
        "count": int(bad.sum()),
        "numel": tensor.numel(),
        "nan": int(torch.isnan(tensor).sum()),
        "minus": int((tensor == -math.inf).sum()),
        "places": places,
        "samples": _first(place[0] for place in places if place),
    }


def _first(numbers: Iterable[int]) -> list[int]:
    return list(dict.fromkeys(numbers))
