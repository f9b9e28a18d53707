"""Compute a taped loss again, on the user's model or on a copy of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from steadygrad.probe.births import Birth, told
from steadygrad.probe.trace import standing_at
from steadygrad.probe.tree import map_tensors
from steadygrad.replay.randomness import kept, set_generators
from steadygrad.replay.tape import Entry, Made, ancestors


@dataclass(frozen=True, slots=True)
class Term:
    """One root of a backward pass: where it came from, its weights, its value.

    `reached` holds the ids of the leaves to which the pass brings a gradient.
    """

    made: Made
    weight: Tensor | None
    value: float
    reached: frozenset[int]


@dataclass(frozen=True, slots=True)
class Score:
    """A loss as a list of entries, and the names under which they use modules and parameters.

    `births` are told of while it is computed: where its broken constants became so, by address.
    """

    entries: Sequence[Entry]
    terms: Sequence[Term]
    paths: Mapping[int, str]
    names: Mapping[int, str]
    births: Mapping[int, Birth] = field(default_factory=dict)

    def play(self, model: nn.Module) -> Tensor:
        """Compute the loss with the modules and parameters of this model."""
        parameters = dict(model.named_parameters())
        made: dict[tuple[int, int], Tensor] = {}
        wanted = torch.is_grad_enabled()
        with kept(), told(self.births), torch.set_grad_enabled(wanted or self._differentiates()):
            for entry in self.entries:
                swap = _swap(entry, made, self.names, parameters)
                for place, tensor in enumerate(_run(entry, self._callee(entry, model), swap)):
                    made[entry.order, place] = tensor
        total = sum_of([_weighted(made[_key(term.made)], term.weight) for term in self.terms])
        return total if wanted else total.detach()

    def _differentiates(self) -> bool:
        """Whether the loss contains gradients itself, as a gradient penalty does."""
        return any(entry.run is torch.autograd.grad for entry in self.entries)

    def _callee(self, entry: Entry, model: nn.Module) -> Callable[..., Any]:
        if entry.module is None:
            return entry.run
        return model.get_submodule(self.paths[id(entry.module)])


def score(terms: Sequence[Term], paths: Mapping[int, str], names: Mapping[int, str]) -> Score:
    """Gather what has to be run again for these terms."""
    return Score(ancestors([term.made for term in terms]), terms, paths, names)


def sum_of(losses: Sequence[Tensor]) -> Tensor:
    """Add scalars; a single one is returned as it is, so that its graph is the script's."""
    total = losses[0]
    for loss in losses[1:]:
        total = total + loss
    return total


def reached(loss: Tensor) -> frozenset[int]:
    """Ids of the leaf tensors to which the backward pass of a loss brings a gradient."""
    found, seen, waiting = set(), set(), [loss.grad_fn]
    if loss.grad_fn is None:
        return frozenset([id(loss)] if loss.requires_grad else [])
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None:
            found.add(id(variable))
        waiting += [one for one, _ in node.next_functions]
    return frozenset(found)


@contextmanager
def buffers_as_noted(entries: Sequence[Entry]) -> Iterator[None]:
    """Give the modules the buffers they had when the script called them, inside the block."""
    first = {id(b): (b, value) for entry in entries[::-1] for b, value in entry.buffers}
    now = [(buffer, buffer.detach().clone()) for buffer, _ in first.values()]
    _copy_all(list(first.values()))
    try:
        yield
    finally:
        _copy_all(now)


def _copy_all(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for buffer, value in pairs:
            buffer.copy_(value)


def _swap(
    entry: Entry,
    made: Mapping[tuple[int, int], Tensor],
    names: Mapping[int, str],
    parameters: Mapping[str, nn.Parameter],
) -> Callable[[Tensor], Tensor]:
    """Return a function from a tensor of the script to the one that stands for it now."""

    def swap(tensor: Tensor) -> Tensor:
        if (link := entry.links.get(id(tensor))) is not None:
            return made[_key(link)]
        if (fresh := entry.fresh.get(id(tensor))) is not None:
            return fresh.clone()
        return parameters.get(names.get(id(tensor), ""), tensor)

    return swap


def _run(
    entry: Entry, callee: Callable[..., Any], swap: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    args, kwargs = map_tensors((entry.args, entry.kwargs), swap)
    set_generators(entry.rng)
    with ExitStack() as stack:
        for kind, dtype in entry.autocast:
            stack.enter_context(torch.autocast(kind, dtype))
        stack.enter_context(standing_at(entry.line))
        return entry.results(args, kwargs, callee(*args, **kwargs))


def _weighted(loss: Tensor, weight: Tensor | None) -> Tensor:
    if weight is not None:
        return (loss * weight).sum()
    return loss if loss.dim() == 0 else loss.sum()


def _key(made: Made) -> tuple[int, int]:
    return made.entry.order, made.place
