"""Read the losses of a pass: what each was given, and whether its gradient reaches the outputs.

What was called is known from the traced pass; see `spy`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from steadygrad.probe.feeder import feeder
from steadygrad.probe.spy import BINARY, CLASSES, LOSSES, SQUARED, SQUARES, Heard, is_trained
from steadygrad.probe.subject import Readings, Subject
from steadygrad.probe.trace import SAMPLED, Trace, log10_norm, spread, thin
from steadygrad.probe.tree import is_signal

VIEWS = re.compile(
    r"^(T|View|UnsafeView|Reshape|Transpose|Permute|Squeeze|Unsqueeze|Clone|ToCopy|Alias|Slice|"
    r"Select|Expand|Flatten|AsStrided|Movedim)Backward"
)


def loss(subject: Subject) -> Readings:
    """Read the fact `losses`, one entry per call of a loss, and `loss`, what it comes to.

    `loss` has the value, and whether its gradient at the outputs is exactly zero.
    """
    readings = Readings(facts={"losses": [], "loss": _outcome(subject)})
    readings.facts["output_end"] = _output_end(subject)
    if not _has_loss(subject):
        readings.blind["losses"] = "no loss function of torch was called"
        return readings
    with torch.no_grad():
        readings.facts["losses"] = [_fact(subject.trace, one) for one in subject.losses]
    return readings


def _output_end(subject: Subject) -> dict[str, Any]:
    """The op, views apart, that put out the model's first output."""
    node = subject.outputs[0].grad_fn if subject.outputs else None
    return {} if node is None else _describe(subject.trace, through_views(node), node)


def _has_loss(subject: Subject) -> bool:
    ops = subject.trace.ops.values()
    return any(op.name in LOSSES or (op.call < 0 and op.name in SQUARES) for op in ops)


# --- What the loss comes to ----------------------------------------------------------------------


def _outcome(subject: Subject) -> dict[str, Any]:
    """Value of the loss, and log10 of the norm of its gradient at the first output."""
    value = subject.loss_value
    if value is None:
        return {}
    found: dict[str, Any] = {"value": float(value.detach()), "output_gradient": None}
    if value.requires_grad and subject.outputs:
        out = subject.outputs[0]
        (gradient,) = torch.autograd.grad(value, [out], retain_graph=True, allow_unused=True)
        if gradient is not None:
            found["output_gradient"] = log10_norm(gradient)
            found["blocked"] = not bool(gradient.any())
    return found


# --- One loss ------------------------------------------------------------------------------------


def _fact(trace: Trace, heard: Heard) -> dict[str, Any]:
    given, target = heard.arguments["input"].detach(), heard.arguments.get("target")
    fact: dict[str, Any] = {
        "name": heard.name,
        "module": heard.module,
        "line": list(heard.line),
        "value": float(heard.out.detach().float().mean()),
        "divided": heard.divided,
        "input": _numbers(given),
        "target": _numbers(target) if isinstance(target, Tensor) else {},
        "end": _end(trace, heard),
        "constant_loss": None,
        "labels_entropy": None,
    }
    if heard.name in CLASSES:
        fact |= classes_of(heard, given, target)
        if fact["end"]["op"] == "relu" and isinstance(target, Tensor):
            fact["shut"] = _shut(given, target)
    if heard.name in BINARY and isinstance(target, Tensor):
        fact |= _binary(heard, given, target)
    if heard.name in SQUARED and isinstance(target, Tensor):
        fact |= _squared(given, target)
    if heard.name == "ctc_loss":
        fact |= _alignable(heard.arguments)
    return fact


def _numbers(tensor: Tensor) -> dict[str, Any]:
    """Range and moments of a tensor; moments of a large one are read from a part of it."""
    tensor = tensor.detach()
    found: dict[str, Any] = {
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "numel": tensor.numel(),
        "broken": 0,
        "samples": [],
    }
    if tensor.is_floating_point() and log10_norm(tensor) == math.inf:
        bad = ~torch.isfinite(tensor)
        rows = bad.reshape(tensor.shape[0] if tensor.dim() else 1, -1).any(1)
        found |= {"broken": int(bad.sum()), "samples": rows.nonzero().flatten()[:5].tolist()}
        tensor = tensor[~bad]
    return found | (_moments(tensor) if tensor.numel() and not tensor.is_complex() else {})


def _moments(tensor: Tensor) -> dict[str, Any]:
    low, high = tensor.aminmax()
    values = tensor.flatten()[:: max(1, tensor.numel() // SAMPLED)].double()
    return {
        "min": float(low),
        "max": float(high),
        "mean": float(values.mean()),
        "std": float(values.std(unbiased=False)),
        "rms": float(values.square().mean().sqrt()),
        "spread": _spread(tensor),
        "zeros": float((tensor == 0).double().mean()),
    }


def _spread(tensor: Tensor) -> float | None:
    value = spread(thin(tensor.detach())) if is_signal(tensor) else math.nan
    return None if math.isnan(value) else value


def _end(trace: Trace, heard: Heard) -> dict[str, Any]:
    """The op, views apart, that put out what the loss was given, and the module it ran in."""
    given = heard.arguments["input"]
    if given.grad_fn is None or not is_trained(given, trace.inputs):
        return {"op": "", "module": None, "feeder": "", "width": 0}
    return _describe(trace, through_views(given.grad_fn), _same_end(trace, heard.out.grad_fn))


def _describe(trace: Trace, at: Node, mine: Node | None) -> dict[str, Any]:
    call = trace.call_of(mine) if mine is not None else -1
    return {
        "op": at.name().partition("Backward")[0].lower(),
        "module": trace.name_of(call) if call >= 0 else None,
        "feeder": feeder(trace, mine) if mine is not None else "",
        "width": _width_of_softmax(at),
    }


def through_views(node: Node) -> Node:
    """The first node, from here backward, that is more than a view."""
    while VIEWS.match(node.name()) and node.next_functions[0][0] is not None:
        node = node.next_functions[0][0]
    return node


def _same_end(trace: Trace, node: Node | None) -> Node | None:
    """The op that the loss was given, views apart."""
    while node is not None:
        op = trace.ops.get(node)
        sources = list(op.sources) if op else []
        node = sources[0] if sources else None
        if node is None or not VIEWS.match(node.name()):
            return node
    return None


def _width_of_softmax(node: Node) -> int:
    """Number of units that a softmax runs over; 0 for any other op."""
    result, axis = getattr(node, "_saved_result", None), getattr(node, "_saved_dim", None)
    if "Softmax" not in node.name() or result is None or axis is None:
        return 0
    axis = axis if axis < 2**63 else axis - 2**64  # autograd gives it without a sign
    return int(result.shape[axis])


def classes_of(heard: Heard, given: Tensor, target: object) -> dict[str, Any]:
    """What a loss over classes was given: scores or probabilities, along which axis, and labels."""
    axis = 1 if given.dim() > 1 else 0
    classes = given.shape[axis]
    found: dict[str, Any] = {"classes": classes, "constant_loss": math.log(max(classes, 1))}
    rows = given.movedim(axis, -1).reshape(-1, classes)[:64].double()
    if heard.name == "cross_entropy":
        found["probabilities"] = bool(
            (rows >= 0).all() and ((rows.sum(-1) - 1).abs() < 1e-3).all() and classes > 1
        )
        if found["probabilities"]:
            found["softmax_factor"] = _softmax_factor(rows)
    else:
        found["log_total"] = float(rows.logsumexp(-1).abs().max()) if len(rows) else 0.0
    if (rows >= 0).all() or (rows <= 0).all():
        found["softmax_axis"] = _softmax_axis(found, given, axis)
        found["contrast"] = len(given) == classes and _is_permutation(target)
    if isinstance(target, Tensor) and not target.is_floating_point():
        found |= _effective(heard.arguments, target, classes)
    return found


def _shut(given: Tensor, target: Tensor, *, least: int = 32) -> list[int]:
    """Labelled classes whose scores are zero for each of at least `least` samples."""
    if given.dim() != 2 or target.dim() != 1 or target.is_floating_point() or len(given) < least:
        return []
    off = (given == 0).all(0)
    return [int(label) for label in target.unique() if 0 <= label < len(off) and off[label]]


def _softmax_axis(
    found: Mapping[str, Any], given: Tensor, classes: int, *, rounding: float = 1e-3
) -> int | None:
    """Axis on which probabilities sum to one, where that is not the classes' axis."""
    logs = "log_total" in found
    if not given.numel() or (found["log_total"] < rounding if logs else found["probabilities"]):
        return None
    values = given.double().exp() if logs else given.double()
    if float(values.min()) < 0 or float(values.max()) > 1 + rounding:
        return None
    others = [axis for axis in range(given.dim()) if axis != classes and given.shape[axis] > 1]
    sums = ((axis, float((values.sum(axis) - 1).abs().max())) for axis in others)
    return next((axis for axis, off in sums if off < rounding), None)


def _is_permutation(target: object) -> bool:
    """Whether labels ask for every class once: samples are contrasted with samples."""
    if not isinstance(target, Tensor) or target.dim() != 1 or target.is_floating_point():
        return False
    return bool((target.sort().values == torch.arange(len(target), device=target.device)).all())


def _softmax_factor(p: Tensor) -> float:
    """Share of the gradient left when cross-entropy takes the softmax of probabilities p [n, C].

    Against p - y at the scores, the gradient is J (softmax(p) - y) with J = diag(p) - p p^T;
    averaged over all labels y.
    """
    hot = torch.eye(p.shape[-1], dtype=p.dtype, device=p.device)[:64]
    given = p.softmax(-1)[:, None] - hot
    passed = p[:, None] * given - p[:, None] * (p[:, None] * given).sum(-1, keepdim=True)
    whole = float((p[:, None] - hot).norm())
    return float(passed.norm()) / whole if whole else math.nan


def _effective(arguments: Mapping[str, Any], target: Tensor, classes: int) -> dict[str, Any]:
    """Labels that count: neither ignored nor of weight zero."""
    counted = target != arguments.get("ignore_index", -100)
    weight = arguments.get("weight")
    found: dict[str, Any] = {"labels": target.numel(), "ignored": int((~counted).sum())}
    if isinstance(weight, Tensor):
        heavy = weight.detach()[target.clamp(0, classes - 1)] != 0
        found["weightless"] = int((counted & ~heavy).sum())
        counted = counted & heavy
    elif not arguments.get("label_smoothing"):
        found["labels_entropy"] = _entropy(target[counted])
    return found | {"effective": int(counted.sum())}


def _entropy(labels: Tensor) -> float:
    """What the best constant prediction of these labels costs, in nats per label."""
    counts = labels.flatten().unique(return_counts=True)[1].double()
    return float(torch.special.entr(counts / counts.sum()).sum())


def _binary(heard: Heard, given: Tensor, target: Tensor) -> dict[str, Any]:
    """Share of probabilities that are exactly 0 or 1, and of those that are wrong."""
    p = given if heard.name == "binary_cross_entropy" else given.sigmoid()
    edge = (p <= 1e-7) | (p >= 1 - 1e-7)
    share = target.detach().double().mean().clamp(0, 1)
    entropy = float(torch.special.entr(torch.stack([share, 1 - share])).sum())
    return {"saturated": float(edge.double().mean()), "constant_loss": entropy}


def _squared(given: Tensor, target: Tensor) -> dict[str, Any]:
    """Shares of the targets that a squashed prediction cannot reach; the constant's loss."""
    y = target.detach().double()
    return {
        "below_zero": float((y < -1e-6).double().mean()),
        "beyond_one": float((y > 1 + 1e-6).double().mean()),
        "below_minus_one": float((y < -1 - 1e-6).double().mean()),
        "same_shape": list(given.shape) == list(target.shape),
        "constant_loss": float(y.var(unbiased=False)),
    }


def _alignable(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Samples whose input is too short for CTC: fewer steps than targets plus repeats."""
    targets = arguments["targets"]
    lengths = _numbers_of(arguments["target_lengths"])
    steps = _numbers_of(arguments["input_lengths"])
    short, start = [], 0
    for sample, (length, given) in enumerate(zip(lengths, steps, strict=True)):
        row = targets[sample, :length] if targets.dim() == 2 else targets[start : start + length]
        start += length
        needed = length + int((row[1:] == row[:-1]).sum())
        if given < needed:
            short.append([sample, given, needed])
    return {"too_short": short}


def _numbers_of(lengths: Any) -> list[int]:  # a tensor or a tuple, as torch takes them
    return [int(one) for one in (lengths.tolist() if isinstance(lengths, Tensor) else lengths)]
