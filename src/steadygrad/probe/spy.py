"""A Spy notes the losses of a traced pass: torch's loss functions, and squares of differences.

Squares of differences are taken for losses where they are written by hand outside the model. The
trace gives the inputs a gradient; whatever has one only from there counts as having none.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional

from steadygrad.probe.trace import Trace, users_line

CLASSES = ("cross_entropy", "nll_loss")
BINARY = ("binary_cross_entropy", "binary_cross_entropy_with_logits")
BY_HAND = "squared difference"
SQUARED = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", BY_HAND)
OTHERS = ("kl_div", "ctc_loss", "poisson_nll_loss", "gaussian_nll_loss", "soft_margin_loss")
LOSSES = frozenset((*CLASSES, *BINARY, *SQUARED[:-1], *OTHERS))
SQUARES = ("pow", "__pow__", "square", "abs", "mul", "__mul__")
DIFFERENCES = ("sub", "__rsub__", "rsub")
DIVISIONS = ("div", "__truediv__", "mul", "__mul__")
KNOWN = LOSSES.union(SQUARES, DIFFERENCES, DIVISIONS)


@dataclass(slots=True)
class Heard:
    """One call of a loss: its arguments by name, and what it returned."""

    name: str
    arguments: dict[str, Any]  # of a function of torch
    out: Tensor
    module: str | None
    line: tuple[str, int]
    divided: bool = False


class Spy:
    """Note every call of a loss, and every square of a difference to something without gradient.

    A Trace shows it each op. Afterwards read `heard`.
    """

    def __init__(self) -> None:
        self.heard: list[Heard] = []
        self._differences: list[tuple[Tensor, Tensor, Tensor]] = []  # (difference, input, target)

    def __call__(
        self,
        trace: Trace,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        out: Tensor,
    ) -> None:
        """Look at an op that has just run."""
        name = getattr(func, "__name__", "")
        if name not in KNOWN or not out.requires_grad:
            return
        if name in LOSSES:
            if is_trained(out, trace.inputs):
                self._note(trace, name, bound(name, args, kwargs), out)
        elif name in DIFFERENCES and trace.running is None:
            self._note_difference(trace, args, out)
        elif name in SQUARES and trace.running is None:
            self._note_square(trace, args, out)
        elif name in DIVISIONS:
            self._note_division(trace, args)

    def _note(self, trace: Trace, name: str, arguments: dict[str, Any], out: Tensor) -> None:
        self.heard.append(Heard(name, arguments, out, trace.running, users_line()))

    def _note_difference(self, trace: Trace, args: tuple[Any, ...], out: Tensor) -> None:
        pair = [t for t in args[:2] if isinstance(t, Tensor)]
        trained = [t for t in pair if is_trained(t, trace.inputs)]
        if len(pair) == 2 and len(trained) == 1:
            one, other = pair if trained[0] is pair[0] else pair[::-1]
            self._differences.append((out, one, other.detach()))

    def _note_square(self, trace: Trace, args: tuple[Any, ...], out: Tensor) -> None:
        for difference, one, other in self._differences:
            if args[0] is difference:
                self._note(trace, BY_HAND, {"input": one, "target": other}, out)

    def _note_division(self, trace: Trace, args: tuple[Any, ...]) -> None:
        """A loss divided by a number taken from the data is normalised."""
        mine = [one for one in self.heard if args[0] is one.out]
        if mine and any(
            isinstance(t, Tensor) and not is_trained(t, trace.inputs) for t in args[1:2]
        ):
            for one in mine:
                one.divided = True


def is_trained(tensor: Tensor, opened: Sequence[Tensor]) -> bool:
    """Whether a tensor leads a gradient to any leaf but the opened inputs."""
    if not opened or tensor.grad_fn is None:
        return tensor.requires_grad and not any(tensor is one for one in opened)
    stack, seen = [tensor.grad_fn], {tensor.grad_fn}
    while stack:
        node = stack.pop()
        leaf = getattr(node, "variable", None)
        if leaf is not None and not any(leaf is one for one in opened):
            return True
        for child, _ in node.next_functions:
            if child is not None and child not in seen:
                seen.add(child)
                stack.append(child)
    return False


def bound(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Name the arguments of a call of one of torch's losses."""
    given = inspect.signature(getattr(functional, name)).bind(*args, **kwargs)
    given.apply_defaults()
    arguments = dict(given.arguments)
    if "log_probs" in arguments:
        arguments["input"] = arguments["log_probs"]
    arguments.setdefault("target", arguments.get("targets"))
    return arguments
