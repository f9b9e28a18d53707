"""How a loss compares: every prediction with every target, or classes along the wrong axis.

Both are told from the call of the loss on the tape; what has to be read is read when asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steadygrad.probe.loss import classes_of
from steadygrad.probe.pairs import DIFFERENCES, EXPANDING, crossed
from steadygrad.probe.spy import CLASSES, SQUARES, Heard
from steadygrad.replay.tape import Entry, Made

DEEP = 16  # calls between a loss and the root
LARGEST = 1 << 20  # elements of what a loss is given that are looked at
WHOLE = ("mean", "sum")
MULTIPLES = ("div", "__truediv__", "true_divide", "mul", "__mul__", "__rmul__")
MODULES: Mapping[type, str] = {
    nn.CrossEntropyLoss: "cross_entropy",
    nn.NLLLoss: "nll_loss",
    nn.MSELoss: "mse_loss",
    nn.L1Loss: "l1_loss",
    nn.BCELoss: "binary_cross_entropy",
    nn.BCEWithLogitsLoss: "binary_cross_entropy_with_logits",
}
Facts = dict[str, Any]  # JSON-like, see core.record.Facts


@dataclass(frozen=True, slots=True)
class Paired:
    """A loss of n predictions and n targets whose shapes make n * n pairs of them."""

    name: str
    prediction: tuple[int, ...]
    target: Tensor
    line: tuple[str, int]

    def fact(self) -> Facts:
        """What `broadcast-loss` wants to know; {} where all targets are the same."""
        low, high = self.target.aminmax()
        if bool(low == high):
            return {}
        shapes = self.prediction, tuple(self.target.shape)
        return {
            "name": self.name,
            "prediction": list(shapes[0]),
            "target": list(shapes[1]),
            "pairs": list(torch.broadcast_shapes(*shapes)),
            "line": list(self.line),
        }


def name_of(entry: Entry) -> str:
    """The function that a call is of, or that a loss of torch.nn calls; '' for another module."""
    if entry.called is not None:
        return MODULES.get(type(entry.called), "")
    return getattr(entry.run, "__name__", "")


def paired(made: Made | None) -> Paired | None:
    """The comparison at the end of a loss, where it pairs all with all and weighs pairs alike."""
    entry = None if made is None else _reduced(made.entry)
    if entry is None:
        return None
    name = name_of(entry)
    if name in SQUARES:
        entry = _inner(entry)
        name = "" if entry is None else name_of(entry)
        named = "difference" if name in DIFFERENCES else ""
    else:
        named = name if name in EXPANDING else ""
    if entry is None or not named:
        return None
    return _crossed(named, entry)


def _reduced(entry: Entry) -> Entry | None:
    """Go from the root to what the mean or the sum of all pairs, or a multiple, is taken of."""
    for _ in range(DEEP):
        name = name_of(entry)
        if name in WHOLE and (len(entry.args) > 1 or entry.kwargs):
            return None
        inner = _inner(entry)
        if name not in (*WHOLE, *MULTIPLES) or inner is None or _is_square(entry):
            return entry
        entry = inner
    return None


def _is_square(entry: Entry) -> bool:
    return len(entry.args) == 2 and entry.args[0] is entry.args[1]


def _inner(entry: Entry) -> Entry | None:
    """The call that made the one argument with a history; None where there are several."""
    found = {id(link.entry): link.entry for link in entry.links.values()}
    return next(iter(found.values())) if len(found) == 1 else None


def _crossed(name: str, entry: Entry) -> Paired | None:
    given = [one for one in entry.given()[:2] if isinstance(one, Tensor)]
    if len(given) != 2 or given[0].numel() != given[1].numel():
        return None
    one, other = given if given[0].requires_grad else given[::-1]
    if other.requires_grad or not all(crossed(tuple(one.shape), tuple(other.shape))):
        return None
    return Paired(name, tuple(one.shape), other.detach(), entry.line)


@dataclass(frozen=True, slots=True)
class Squashed:
    """What a loss over classes was given by a softmax: a copy, as it is read only when asked for.

    `end` is the op that put it out, views apart.
    """

    name: str
    given: Tensor
    target: object
    end: str

    def fact(self) -> Facts:
        """What `wrong-axis` wants to know."""
        heard = Heard(self.name, {}, self.given, None, ("", 0))
        return {
            "name": self.name,
            "input": {"shape": list(self.given.shape)},
            "end": {"op": self.end, "module": None, "feeder": ""},
            "softmax_axis": None,
            **classes_of(heard, self.given, self.target),
        }


def squashed(name: str, given: Tensor, target: object, end: str) -> Squashed | None:
    """Keep what a loss over classes was given, where a softmax has put it out."""
    if name not in CLASSES or "softmax" not in end or not 1 < given.numel() <= LARGEST:
        return None
    return Squashed(name, given.detach().clone(), target, end)
