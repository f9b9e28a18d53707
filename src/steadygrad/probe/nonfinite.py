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
from torch import Tensor, nn

from steadygrad.probe.feeder import feeder
from steadygrad.probe.first_backward import first_backward
from steadygrad.probe.first_forward import first_forward, until_exception
from steadygrad.probe.gradients import gradients
from steadygrad.probe.headroom import exponentials, half
from steadygrad.probe.singular import Amplification, below_eps, mattering
from steadygrad.probe.subject import Readings, Subject
from steadygrad.probe.trace import log10_norm
from steadygrad.probe.tree import is_signal, tensors

STEEP = re.compile(r"normalize|cosine|^norm$|vector_norm|^std|^var|sqrt$")


def first_nonfinite(subject: Subject) -> Readings:
    """Read the facts `nonfinite`, `norm_overflow`, `half`, `singular`, and `exponentials`.

    `nonfinite` holds the broken data, parameters, and buffers, whether outputs, loss, and gradients
    are broken, and the first guilty op of the forward and of the backward pass; `entered` is the op
    that was given something broken, where none is guilty.
    """
    facts: dict[str, Any] = {
        "data": [_tensor(name, t) for name, t in given(subject) if _broken(t)],
        "parameters": _broken_parameters(subject),
        "buffers": broken_buffers(subject.model),
        "outputs": any(_broken(t) for one in subject.trace.results for t in tensors(one)),
        "nan_outputs": any(_nan(t) for one in subject.trace.results for t in tensors(one)),
        "loss": None if subject.loss_value is None else _broken(subject.loss_value),
        "gradients": [],
        "no_gradient": False,
        "forward": {},
        "entered": {},
        "backward": {},
    }
    readings = Readings(facts={"nonfinite": facts})
    readings.facts["half"] = half(subject.trace)
    readings.facts["exponentials"] = exponentials(subject.trace)
    readings.facts["below_eps"] = below_eps(subject.trace)
    _read_gradients(subject, facts, readings)
    if facts["nan_outputs"] or facts["loss"] or (facts["loss"] is None and facts["outputs"]):
        found = _forward(subject)
        guilty = found.get("how") in ("born", "nan")
        facts["forward" if guilty else "entered"] = found
    return readings


def before_exception(
    model: nn.Module, run: Callable[[], object], inputs: Iterable[Tensor]
) -> dict[str, Any]:
    """The fact `nonfinite` of a forward pass that raises: what broke before it did."""
    data = [_tensor(f"input {n}", t) for n, t in enumerate(inputs) if _broken(t)]
    signals = [(name, one) for name, one in model.named_parameters() if _broken(one)]
    event = until_exception(model, run)
    return {
        "data": data,
        "parameters": [_tensor(name, one) for name, one in signals],
        "buffers": broken_buffers(model),
        "outputs": True,
        "nan_outputs": True,
        "loss": None,
        "gradients": [],
        "no_gradient": False,
        "forward": event if event.get("how") in ("born", "nan") else {},
        "entered": event,
        "backward": {},
    }


def broken_buffers(model: nn.Module) -> list[dict[str, Any]]:
    """Describe each buffer that holds something NaN or infinite."""
    return [_tensor(name, one) for name, one in model.named_buffers() if _broken(one)]


def _forward(subject: Subject) -> dict[str, Any]:
    """The first guilty op of the forward pass, with the layer that feeds it."""
    found, trace = first_forward(subject), subject.trace
    broken = (n for n, op in trace.ops.items() if op.log_norm == math.inf)
    same = [n for n in broken if found and trace.ops[n].name == found["op"]]
    return {**found, "feeder": feeder(trace, same[0])} if same else found


def given(subject: Subject) -> Iterator[tuple[str, Tensor]]:
    """Yield the floating data that the outermost module calls were given, named by place.

    What another part of the network has computed is no data.
    """
    number, data = 0, {id(one) for one in subject.trace.inputs}
    for call in subject.trace.calls:
        if call.parent == -1 and call.inputs is not None:
            for tensor in tensors(call.inputs):
                if is_signal(tensor) and not _is_computed(tensor, data):
                    yield f"input {number}", tensor
                number += 1


def _is_computed(tensor: Tensor, data: set[int]) -> bool:
    """Whether a tensor has a history, other than the clone that an input is opened with."""
    if tensor.grad_fn is None:
        return False
    leaves = (getattr(child, "variable", None) for child, _ in tensor.grad_fn.next_functions)
    return not any(id(leaf) in data for leaf in leaves)


# --- Gradients ----------------------------------------------------------------------------------


def _read_gradients(subject: Subject, facts: dict[str, Any], readings: Readings) -> None:
    """Take the gradients of loss or outputs, and look closer when one is broken."""
    root = _root(subject)
    named: dict[str, Tensor] = {
        n: p for n, p in subject.model.named_parameters() if p.requires_grad and is_signal(p)
    }
    steep = any(STEEP.search(op.name) for op in subject.trace.ops.values())
    if subject.pulled and subject.loss_value is None and not steep:
        readings.blind["norm_overflow"] = "no loss was given"
        readings.facts["singular"] = []
        return
    if root is None or root.grad_fn is None or not named:
        readings.blind["norm_overflow"] = "no gradient leads from the loss to a parameter"
        readings.facts["singular"] = []
        return
    noise = torch.ones_like(root) if root.numel() == 1 else subject.noise(root)
    named = _wanted(subject, named)

    def pull() -> tuple[Tensor | None, ...]:
        return gradients([root], list(named.values()), [noise])

    with Amplification(subject.trace, root.grad_fn) as blown_up:
        logs = _log_norms(named, pull)
    facts["gradients"] = [name for name, size in logs.items() if size == math.inf]
    facts["no_gradient"] = bool(logs) and all(size == -math.inf for size in logs.values())
    readings.facts["norm_overflow"] = _overflowing(named, logs)
    readings.facts["singular"] = mattering(blown_up, logs)
    if facts["gradients"] and not facts["loss"]:
        facts["backward"] = first_backward(subject.trace, root.grad_fn, pull)
        if facts["backward"].get("broken_before"):
            found = _forward(subject)
            facts["forward"] = found if found.get("how") in ("born", "nan") else {}


def _log_norms(
    named: dict[str, Tensor], pull: Callable[[], tuple[Tensor | None, ...]]
) -> dict[str, float]:
    """log10 of the norm of each gradient that arrives, read on arrival: none is kept."""
    early: dict[str, float] = {}

    def reader(name: str) -> Callable[[Tensor], Tensor | None]:
        def hook(gradient: Tensor) -> Tensor | None:
            early[name] = log10_norm(_dense(gradient))
            plain = type(gradient) is Tensor and gradient.layout is torch.strided
            return gradient.new_zeros(()).expand_as(gradient) if plain else None

        return hook

    handles = [one.register_hook(reader(name)) for name, one in named.items() if one.is_leaf]
    try:
        found = dict(zip(named, pull(), strict=True))
    finally:
        for handle in handles:
            handle.remove()
    arrived = {name: g for name, g in found.items() if g is not None}
    return {n: early[n] if n in early else log10_norm(_dense(g)) for n, g in arrived.items()}


def _wanted(subject: Subject, named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors whose gradients are read: without a loss the inputs' tell as much for less."""
    inputs = subject.trace.inputs + subject.trace.entries
    if subject.loss_value is not None or not inputs:
        return named
    return {f"input {number}": tensor for number, tensor in enumerate(inputs)}


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


# --- Broken tensors -------------------------------------------------------------------------------


def _broken_parameters(subject: Subject) -> list[dict[str, Any]]:
    named = subject.model.named_parameters()
    signals = [(name, one) for name, one in named if is_signal(one)]
    return [_tensor(name, one) for name, one in signals if subject.log_norm(one) == math.inf]


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
