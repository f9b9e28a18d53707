"""Find losses that compare every prediction with every target, by broadcasting [n, 1] with [n].

The traced pass tells where what the loss was given had been expanded; only then the pass is run
once more, and the arguments are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode

from steadygrad.probe.rerun import calling, rerun
from steadygrad.probe.spy import SQUARED, SQUARES
from steadygrad.probe.subject import Readings, Subject
from steadygrad.probe.trace import Op, Trace, users_line

EXPANDING = frozenset(SQUARED[:-1])  # the last is no function of torch
UNTOLD = frozenset(("poisson_nll_loss", "gaussian_nll_loss", "soft_margin_loss"))
LOSSES = EXPANDING | UNTOLD
DIFFERENCES = frozenset(("sub", "__sub__", "rsub", "__rsub__"))
PRODUCTS = frozenset(("mul", "__mul__", "__rmul__"))
BY_HAND = DIFFERENCES | PRODUCTS
WITHIN = 6  # nodes that a loss function of torch puts between its arguments and its result


def pairs(subject: Subject) -> Readings:
    """Read the fact `pairs`: ops of the loss that pair every prediction with every target."""
    if subject.loss is None or subject.loss_value is None:
        return Readings(blind={"pairs": "no loss was given"})
    if not any(_grows(subject.trace, node, op) for node, op in subject.trace.ops.items()):
        return Readings(facts={"pairs": []})
    with calling(subject.model) as running:
        listener = Listener(running)
        result = rerun(subject, listener)
    return Readings(facts={"pairs": [_fact(one) for one in listener.heard if one.counts(result)]})


def _grows(trace: Trace, node: Node, op: Op) -> bool:
    """Whether an op of the loss puts out more than it was given, or may have done so inside."""
    if op.name in EXPANDING:
        return _expands(node, set(op.sources))
    if op.name in UNTOLD:
        return True
    known = [trace.ops[source].numel for source in op.sources if source in trace.ops]
    return op.call < 0 and op.name in BY_HAND and bool(known) and op.numel > max(known)


def _expands(node: Node, sources: set[Node]) -> bool:
    """Whether an expansion stands between a loss and what it was given."""
    level = [node]
    for _ in range(WITHIN):
        if any(one.name().startswith("Expand") for one in level):
            return True
        below = [child for one in level for child, _ in one.next_functions]
        level = [child for child in below if child is not None and child not in sources]
    return False


@dataclass(frozen=True, slots=True)
class Pairing:
    """A loss, or part of one, that broadcast both arguments: n values each, and n * n pairs.

    Of a difference `out` is the square, or the absolute value: what the pairs cost.
    """

    name: str
    prediction: Tensor
    target: Tensor
    out: Tensor
    line: tuple[str, int]

    def counts(self, loss: Tensor) -> bool:
        """Whether the loss weighs all pairs of a prediction, or of a target, alike.

        It then knows of no prediction which target is its own. A loss that picks or weighs pairs
        (quantiles, nearest centers, kernels) does not.
        """
        if self.out.dim() < max(self.prediction.dim(), self.target.dim()):
            return True  # reduced by torch itself, evenly
        (weight,) = torch.autograd.grad(loss, [self.out], retain_graph=True, allow_unused=True)
        if weight is None or not bool(weight.any()):
            return False
        axes = crossed(tuple(self.prediction.shape), tuple(self.target.shape))
        return any(_even(weight, repeated) for repeated in axes)


def _even(weight: Tensor, axes: list[int], *, rounding: float = 1e-5) -> bool:
    """Whether weights are equal along some axes."""
    first = weight
    for axis in axes:
        first = first.narrow(axis, 0, 1)
    return float((weight - first).abs().max()) <= rounding * float(weight.abs().max())


def crossed(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """Axes of the result along which only one, and only the other argument was repeated."""
    width = max(len(one), len(other))
    one, other = (1,) * (width - len(one)) + one, (1,) * (width - len(other)) + other
    sizes = list(zip(one, other, strict=True))
    return (
        [axis for axis, (a, b) in enumerate(sizes) if a == 1 < b],
        [axis for axis, (a, b) in enumerate(sizes) if b == 1 < a],
    )


class Listener(TorchFunctionMode):
    """Note losses, and differences and products outside of all modules, that pair each with all."""

    def __init__(self, running: list[str]) -> None:
        super().__init__()
        self.running = running
        self.heard: list[Pairing] = []
        self._differences: list[Pairing] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,  # torch's own signature
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # whatever func returns
        """Run the function and note it when its arguments do not fit."""
        out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name in LOSSES or (name in BY_HAND and not self.running):
            given = [t for t in (*args, *(kwargs or {}).values()) if isinstance(t, Tensor)][:2]
            if isinstance(out, Tensor) and out.requires_grad and len(given) == 2:
                self._note(name, given, out)
        if name in SQUARES and args:
            self.heard += [replace(one, out=out) for one in self._differences if one.out is args[0]]
        return out

    def _note(self, name: str, given: list[Tensor], out: Tensor) -> None:
        prediction, target = given if given[0].requires_grad else given[::-1]
        by_hand = name in BY_HAND
        if by_hand and target.requires_grad:
            return  # such as the distances between all samples
        if _misfit(prediction, target) and _differs(target):
            kind = name if not by_hand else "difference" if name in DIFFERENCES else "product"
            kept = self._differences if name in DIFFERENCES else self.heard
            kept.append(Pairing(kind, prediction, target, out, users_line()))


def _misfit(one: Tensor, other: Tensor) -> bool:
    """Whether as many values in another number of axes are broadcast, each with all others.

    With equally many axes somebody has inserted them on purpose.
    """
    if one.dim() == other.dim() or one.numel() != other.numel():
        return False
    mine, others = crossed(tuple(one.shape), tuple(other.shape))
    return bool(mine and others)


def _differs(target: Tensor) -> bool:
    """Whether it matters which value a prediction meets."""
    values = target.detach()
    return bool((values != values.flatten()[0]).any())


def _fact(one: Pairing) -> dict[str, Any]:
    return {
        "name": one.name,
        "prediction": list(one.prediction.shape),
        "target": list(one.target.shape),
        "pairs": list(torch.broadcast_shapes(one.prediction.shape, one.target.shape)),
        "line": list(one.line),
    }
