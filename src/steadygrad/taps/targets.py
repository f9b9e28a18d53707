"""What the best constant prediction would cost, by the targets that losses were given.

Targets are kept, and read only when somebody asks: nothing waits for the device in a step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from steadygrad.probe.loss import through_views
from steadygrad.probe.spy import BINARY, CLASSES, bound
from steadygrad.replay.tape import Entry, Made, Tape
from steadygrad.taps.compared import (
    DEEP,
    MODULES,
    MULTIPLES,
    Paired,
    Squashed,
    name_of,
    paired,
    squashed,
)

MOST = 32  # passes whose targets are kept: the first eight, then each power of two
FIRST = 8
SIZE = 1 << 14  # elements of the target of one pass
MOVED = 1.5  # ratio of the costs of early and late targets above which they move (bootstrapped)
SCALED = (*MULTIPLES, "__itruediv__", "mean")
SUMS = ("add", "__add__", "__radd__", "__iadd__")
SETTINGS = ("weight", "ignore_index", "reduction", "label_smoothing", "pos_weight")
KNOWN = frozenset(MODULES.values())
Facts = dict[str, Any]  # JSON-like, see core.record.Facts


@dataclass(frozen=True, slots=True)
class Noted:
    """One call of a loss: its target, and what became of its value on the way to the root."""

    name: str
    end: str  # the op, views apart, that made what the loss was given
    classes: int
    target: Tensor
    count: int  # of what is averaged over; 1 for a mean
    value: Tensor | None  # of the loss, where the root is a multiple of it
    root: Tensor
    ignored: int  # the label that does not count
    alone: bool = True  # whether the root is nothing but a multiple of it
    squashed: Squashed | None = None


class Targets:
    """Keeps the targets of some backward passes, as long as all are understood."""

    def __init__(self) -> None:
        self._noted: list[Noted] = []
        self._passes = 0
        self._lost = False
        self._paired: Paired | None = None  # in the last pass that was looked at
        self._known: tuple[int, Facts] = (-1, {})  # of so many passes

    def note(self, tape: Tape, root: Tensor) -> None:
        """Look for the loss that a backward pass starts on."""
        self._passes += 1
        often = self._passes <= FIRST or self._passes & (self._passes - 1) == 0
        if not often or len(self._noted) >= MOST:
            return
        made = tape.made(root)
        self._paired = paired(made)
        if self._lost:
            return
        found = _noted(made, root)
        if found is None or (self._noted and found.name != self._noted[0].name):
            self._lost, self._noted = True, []
        else:
            self._noted.append(replace(found, squashed=None) if self._noted else found)

    def facts(self) -> Facts:
        """The facts `constant`, `given`, `losses`, `pairs`; new targets wait for the device."""
        if self._known[0] != self._passes:
            known: Facts = {"constant": self._constant(), "given": self._given()}
            first = self._noted[0].squashed if self._noted else None
            pairs = {} if self._paired is None else self._paired.fact()
            known["losses"] = [] if first is None else [first.fact()]
            self._known = (self._passes, {**known, "pairs": [pairs] if pairs else []})
        return self._known[1]

    def _given(self) -> Facts:
        """What the loss was given: the op at the network's end, and the range of the targets."""
        if not self._noted:
            return {}
        first = self._noted[0]
        whole = torch.cat([one.target for one in self._noted])
        if not whole.numel():
            return {}
        low, high = (float(end) for end in whole.aminmax())
        end = first.end if all(one.end == first.end for one in self._noted) else ""
        return {"loss": first.name, "end": end, "classes": first.classes, "low": low, "high": high}

    def _constant(self) -> Facts:
        """What a constant costs in one pass; nothing where that is not known."""
        if not self._noted or not all(one.alone for one in self._noted):
            return {}
        half = max(1, len(self._noted) // 2)
        whole = _cost(self._noted)
        early, late = _cost(self._noted[:half]), _cost(self._noted[half:] or self._noted)
        if not whole or min(early, late) * MOVED < max(early, late):
            return {}
        first = self._noted[0]
        factor = 1.0 if first.value is None else float(first.root) / (float(first.value) or 1.0)
        fact = {"loss": whole * factor * first.count}
        if first.name in CLASSES:
            labels = sum(one.target.numel() for one in self._noted)
            fact |= {"classes": first.classes, "labels_entropy": whole, "count": labels}
        return fact


def _noted(made: Made | None, root: Tensor) -> Noted | None:
    """Follow multiples and sums of a loss down to its call; None unless there is just one."""
    found = [] if made is None else _behind(made.entry, None, root.detach(), DEEP)
    return found[0] if len(found) == 1 else None


def _behind(entry: Entry, value: Tensor | None, root: Tensor, deep: int) -> list[Noted]:
    """The losses that an entry's result is made of; `value` is that result, None for the root's."""
    called = _called(entry)
    if called is not None:
        one = _understood(*called, value, root)
        return [] if one is None else [one]
    name, given = getattr(entry.run, "__name__", ""), entry.given()
    inner = [one for one in given if id(one) in entry.links]
    multiple = name in SCALED and len(inner) == len(given) == 1
    if not deep or not (multiple or name in SUMS):
        return []
    found = [
        noted
        for one in inner
        for noted in _behind(entry.links[id(one)].entry, one.detach(), root, deep - 1)
    ]
    return found if multiple else [replace(one, alone=False) for one in found]


def _called(entry: Entry) -> tuple[str, dict[str, Any]] | None:
    """Name and arguments of the loss that an entry has called, as torch's function has them."""
    name, kwargs = name_of(entry), entry.kwargs
    if entry.called is not None:
        mine = {key: vars(entry.called).get(key) for key in SETTINGS}
        kwargs = {**kwargs, **{k: v for k, v in mine.items() if v is not None}}
    if name not in KNOWN:
        return None
    return name, bound(name, entry.args, kwargs)


def _understood(
    name: str, arguments: Mapping[str, Any], value: Tensor | None, root: Tensor
) -> Noted | None:
    """A loss of which it is known what a constant prediction costs."""
    given, target = arguments["input"], arguments["target"]
    plain = all(arguments.get(key) is None for key in ("weight", "pos_weight"))
    mean, labels = arguments["reduction"] == "mean", name in CLASSES
    fits = not target.is_floating_point() if labels else given.shape == target.shape
    if not plain or not fits or arguments.get("label_smoothing"):
        return None
    if not mean and arguments["reduction"] != "sum":
        return None
    end = "" if given.grad_fn is None else through_views(given.grad_fn).name()
    end = end.partition("Backward")[0].lower()
    shares = squashed(name, given, target, end)
    target = target.detach().flatten()
    classes = int(given.shape[min(1, given.dim() - 1)])
    count = 1 if mean else target.numel()
    step = max(1, target.numel() // SIZE)
    kept = target[::step].clone()
    ignored = int(arguments.get("ignore_index", 0))
    return Noted(name, end, classes, kept, count, value, root, ignored, squashed=shares)


def _cost(noted: Sequence[Noted]) -> float:
    """What the best constant prediction costs per element; 0 where it costs nothing."""
    labels = noted[0].name in CLASSES
    together = torch.cat([one.target for one in noted])
    together = together[together != noted[0].ignored] if labels else together.double()
    if not together.numel() or (together.is_floating_point() and not together.isfinite().all()):
        return 0.0
    return COSTS[noted[0].name](together)


def entropy_of(labels: Tensor) -> float:
    """What the best constant prediction of some labels costs, in nats."""
    counts = labels.unique(return_counts=True)[1].double()
    return float(torch.special.entr(counts / counts.sum()).sum())


def _of_shares(target: Tensor) -> float:
    share = target.mean().clamp(0, 1)
    return float(torch.special.entr(torch.stack([share, 1 - share])).sum())


def _of_squares(target: Tensor) -> float:
    return float(target.var(unbiased=False))


def _of_distances(target: Tensor) -> float:
    return float((target - target.median()).abs().mean())


COSTS: Mapping[str, Callable[[Tensor], float]] = {
    **dict.fromkeys(CLASSES, entropy_of),
    **dict.fromkeys(BINARY, _of_shares),
    "mse_loss": _of_squares,
    "l1_loss": _of_distances,
}
