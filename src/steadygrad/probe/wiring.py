"""Tell which parameters the loss reaches, which it does not and why, and which nobody steps.

A parameter is reached when a path of autograd nodes leads from the loss (or the outputs) to it.
Only when some are not is more spent: one backward pass on a copy asks autograd itself (a reentrant
checkpoint hides parameters from the graph), and one tracked forward pass finds where the path ends.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from steadygrad.probe.cuts import Cuts, follow
from steadygrad.probe.graph import reachable
from steadygrad.probe.subject import UNCOPYABLE, Readings, Subject
from steadygrad.probe.tree import tensors

FLAT = re.compile(r"(Round|Floor|Ceil|Trunc|Sign|Sgn|Heaviside)Backward")  # their slope is zero
COUNTS = ("held", "total", "elements", "missing")
PRIVATE = ("_parameters", "_modules", "_buffers")  # where nn.Module keeps what is registered


def wiring(subject: Subject) -> Readings:
    """Read the wiring: four disjoint sets of parameters, as the fact `wiring`.

    `unregistered` are trained-looking tensors that the model does not list, `frozen` counts those
    that require no gradient, `unreached` those without a path from the loss (`why`: cut, unused or
    uncalled), `steps` says for each reached module how many of its parameters the optimizer holds.
    """
    named = dict(subject.model.named_parameters())
    trainable = {name: one for name, one in named.items() if one.requires_grad}
    reached = leaves_below(_roots(subject))
    missed = [name for name, one in trainable.items() if id(one) not in reached]
    if missed:
        missed = _confirmed(subject, missed)
    facts = {
        "has_loss": subject.loss_value is not None,
        "has_optimizer": subject.optimizer is not None,
        "parameters": len(named),
        "trainable": len(trainable),
        "trainable_share": _share(trainable.values(), named.values()),
        "reached": len(trainable) - len(missed),
        "unregistered": _unregistered(subject, reached),
        "unreached": _unreached(subject, missed) if missed else [],
        "first_module": _first_module(subject),
        **_held(subject, [name for name in trainable if name not in set(missed)]),
    }
    return Readings(facts={"wiring": facts})


def leaves_below(roots: list[Tensor]) -> dict[int, Tensor]:
    """Tensors in which autograd would accumulate a gradient from these roots, by id."""
    found = {id(root): root for root in roots if root.is_leaf and root.requires_grad}
    for root in roots:
        for node in _sloping(root) if root.grad_fn is not None else ():
            variable = getattr(node, "variable", None)
            if variable is not None:
                found[id(variable)] = variable
    return found


def _sloping(root: Tensor) -> list[Node]:
    """Nodes that a gradient gets to: not those that stand behind nothing but ops of slope zero."""
    order = [] if root.grad_fn is None else reachable(root.grad_fn)
    alive = {root.grad_fn}
    for node in reversed(order):
        if node in alive and not FLAT.match(node.name()):
            alive |= {child for child, _ in node.next_functions}
    return [node for node in order if node in alive]


def _roots(subject: Subject) -> list[Tensor]:
    return subject.outputs if subject.loss_value is None else [subject.loss_value]


def _share(part: Any, whole: Any) -> float:  # views of a dict of parameters
    total = sum(one.numel() for one in whole)
    return sum(one.numel() for one in part) / total if total else 0.0


def _run(subject: Subject, model: nn.Module) -> list[Tensor]:
    """Return the loss, or else the floating outputs, of one more pass."""
    if subject.loss is not None:
        return [subject.loss_again(model)]
    return [one for one in tensors(subject.again(model)) if one.is_floating_point()]


def _confirmed(subject: Subject, missed: list[str]) -> list[str]:
    """Names that get no gradient in a real backward pass either; all of them if there is none."""
    try:
        model, _ = subject.twin()
    except UNCOPYABLE:
        return missed
    model.zero_grad(set_to_none=True)
    roots = [one.sum() for one in _run(subject, model) if one.requires_grad]
    if not roots:
        return missed
    mine = {id(one) for one in model.parameters()}
    others = [one for key, one in leaves_below(roots).items() if key not in mine]
    kept = [(one, one.grad) for one in others]
    try:
        for one in others:
            one.grad = None
        torch.autograd.backward(roots)
    finally:
        for one, grad in kept:
            one.grad = grad
    return [name for name in missed if not _got(model.get_parameter(name).grad)]


def _got(grad: Tensor | None) -> bool:
    return grad is not None and (grad.layout is not torch.strided or bool(grad.any()))


def _unreached(subject: Subject, missed: list[str]) -> list[dict[str, Any]]:
    """Say of each missed parameter where its path ends, whether it is stepped and in training."""
    with follow(subject.model) as cuts:
        roots = _run(subject, subject.model)
    called = {call.name for call in subject.trace.calls}
    held = {id(one) for one in _stepped(subject)}
    rows = []
    for name in missed:
        owner, _, _ = name.rpartition(".")
        parameter = subject.model.get_parameter(name)
        rows.append(
            {
                "name": name,
                "module": owner,
                "elements": parameter.numel(),
                "held": id(parameter) in held,
                "training": subject.model.get_submodule(owner).training,
                "doubled": _doubled(subject.model, name, set(missed)),
                **_why(cuts, name, roots, owner in called),
            }
        )
    return rows


def _why(cuts: Cuts, name: str, roots: list[Tensor], called: bool) -> dict[str, Any]:
    cut = cuts.cut_of(name, roots)
    if cut is None:
        return {"why": "unused" if called else "uncalled"}
    file, line = cut.line
    return {"why": "cut", "op": cut.op, "at": f"{file}:{line}" if file else "", "inside": cut.call}


def _doubled(model: nn.Module, name: str, missed: set[str]) -> bool:
    """Whether another module holds the same parameter, trained: the student of this teacher."""
    _, _, tail = name.partition(".")
    shape = model.get_parameter(name).shape
    return any(
        other not in missed and tail and other.partition(".")[2] == tail and one.shape == shape
        for other, one in model.named_parameters()
    )


def _first_module(subject: Subject) -> str:
    """Name of the first called module that owns a parameter."""
    for call in subject.trace.calls:
        if next(call.module.parameters(recurse=False), None) is not None:
            return call.name
    return ""


# --- Tensors that the model does not list ------------------------------------------------------


def _unregistered(subject: Subject, reached: dict[int, Tensor]) -> list[dict[str, Any]]:
    """Reached leaves that are neither parameters nor inputs nor stepped by the optimizer."""
    known = {id(one) for one in subject.model.parameters()} | {id(t) for t in subject.trace.inputs}
    known |= {id(one) for one in subject.trace.leaves}
    strangers = [one for key, one in reached.items() if key not in known]
    if not strangers:
        return []
    hidden = {id(one): (name, training) for name, one, training in hidden_tensors(subject.model)}
    outside = [one for one in _stepped(subject) if id(one) not in known]
    return [
        {"name": name, "hidden": bool(name), "training": training, "elements": one.numel()}
        for one in strangers
        for name, training in [hidden.get(id(one), ("", True))]
        if not any(_same(one, other) for other in outside)
    ]


def hidden_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor, bool]]:
    """Yield what modules keep in plain attributes: (name, tensor, in training mode)."""
    for prefix, module in model.named_modules():
        for key, value in vars(module).items():
            if key not in PRIVATE and not key.endswith("_hooks"):
                path = f"{prefix}.{key}" if prefix else key
                yield from _inside(value, path, module.training)


def _inside(value: Any, path: str, training: bool, depth: int = 3) -> Iterator[Any]:
    """Look into an attribute of any type, through up to `depth` containers."""
    if isinstance(value, nn.Module):
        named = value.named_parameters()
        yield from ((f"{path}.{name}", one, value.training) for name, one in named)
    elif isinstance(value, Tensor):
        yield path, value, training
    elif depth and isinstance(value, dict):
        for key, one in value.items():
            yield from _inside(one, f"{path}.{key}", training, depth - 1)
    elif depth and isinstance(value, (list, tuple, set)):
        for place, one in enumerate(value):
            yield from _inside(one, f"{path}.{place}", training, depth - 1)


# --- Who steps what ----------------------------------------------------------------------------


def _stepped(subject: Subject) -> list[Tensor]:
    groups = [] if subject.optimizer is None else subject.optimizer.param_groups
    return [one for group in groups for one in group["params"]]


def _held(subject: Subject, reached: list[str]) -> dict[str, Any]:
    """Count, for each module in forward order, its reached parameters and those that are stepped.

    `foreign` are shapes the optimizer holds that are neither in the model nor reached by the loss.
    """
    if subject.optimizer is None:
        return {"steps": [], "foreign": []}
    stepped = _stepped(subject)
    ids = {id(one) for one in stepped}
    rows: dict[str, dict[str, Any]] = {}
    for name in reached:
        owner, _, _ = name.rpartition(".")
        row = rows.setdefault(owner, {"name": owner, **dict.fromkeys(COUNTS, 0)})
        one = subject.model.get_parameter(name)
        row["total"] += 1
        row["held"] += id(one) in ids
        row["elements"] += one.numel()
        row["missing"] += 0 if id(one) in ids else one.numel()
        row["training"] = subject.model.get_submodule(owner).training
        row["fresh"] = row.get("fresh", False) or (id(one) not in ids and fresh(one))
    order = _forward_order(subject)
    steps = sorted(rows.values(), key=lambda row: order.get(row["name"], len(order)))
    return {"steps": steps, "foreign": [list(one.shape) for one in _foreign(subject, stepped)]}


def fresh(weight: Tensor, *, least: int = 256) -> bool:
    """Whether a matrix looks newly drawn: its kurtosis is that of a uniform or a normal law.

    1.8 and 3, within 0.25 (truncated normal: 2.8); trained weights have heavier tails. Of a matrix
    with fewer than `least` elements nothing is said. A heuristic, chosen by us.
    """
    if weight.dim() < 2 or weight.numel() < least:
        return False
    w = weight.detach().double()
    size = float(w.square().mean())
    kurtosis = float(w.pow(4).mean()) / size**2 if size else 0.0
    return abs(kurtosis - 1.8) < 0.25 or abs(kurtosis - 3.0) < 0.25


def _forward_order(subject: Subject) -> dict[str, int]:
    names = dict.fromkeys(call.name for call in subject.trace.calls)
    return {name: place for place, name in enumerate(names)}


def _foreign(subject: Subject, stepped: list[Tensor]) -> list[Tensor]:
    """Stepped tensors that are not in the model; those of the loss function are recognised.

    A check copies the optimizer but not the loss function, so that its parameters are compared by
    value.
    """
    mine = {id(one) for one in subject.model.parameters()}
    mine |= {id(one) for _, one, _ in hidden_tensors(subject.model)}
    used = [one for key, one in leaves_below(_roots(subject)).items() if key not in mine]
    others = [one for one in stepped if id(one) not in mine]
    return [one for one in others if not any(_same(one, other) for other in used)]


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.shape == other.shape and torch.equal(one, other))
