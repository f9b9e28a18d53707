"""The one pass over the gradients: the norm of each, over all ranks.

Every gradient is read once, where it lies, by one call for all. The squares of shards are summed in
one collective for each set of ranks that shares parameters, for all parameters together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from steadygrad.guards.dtensor import (
    has_partial_sums,
    is_dtensor,
    sharded_axes,
    to_local,
    without_partial_sums,
)

HALF = {torch.float16, torch.bfloat16}
Shared = tuple[Any, str]  # a ProcessGroup, and the kind of device on which it sums


@dataclass(frozen=True, slots=True)
class Group:
    """Ranks that share parameters, and what the square of each of their parts counts.

    `shares` [parameters] are 1 for a parameter that is sharded over these ranks, and 1 / ranks for
    one that each of them holds whole: of that the mean is taken, so that all ranks decide alike
    even when one of them has gone wrong alone. None: all are sharded. `device` is where the
    collectives of this group run.
    """

    ranks: Any  # a ProcessGroup, which torch declares without a public type
    shares: Tensor | None
    device: str

    def sum_(self, squares: Tensor) -> None:
        """Sum squares [parameters] over the ranks, in place."""
        if self.shares is not None:
            squares.mul_(self.shares)
        there = squares.to(self.device)
        dist.all_reduce(there, group=self.ranks)
        if there is not squares:
            squares.copy_(there)


def groups_of(parameters: Sequence[Tensor], flat: Mapping[int, Shared]) -> tuple[Group, ...]:
    """Find the process groups of DTensors, and of FSDP1's parameters, by id in `flat`.

    Groups of the same ranks, of two meshes, are one. They come in the order of the parameters,
    which must be the same on all ranks. Replicas (DDP, HSDP) hold equal gradients and need no sum.
    """
    found: dict[tuple[Any, ...], tuple[Shared, set[int]]] = {}
    for place, one in enumerate(parameters):
        for shared in _shared_by(one, flat):
            ranks = dist.get_process_group_ranks(shared[0])
            if len(ranks) > 1:
                found.setdefault((*ranks, shared[1]), (shared, set()))[1].add(place)
    return tuple(
        Group(ranks, _shares(places, parameters, dist.get_world_size(ranks)), device)
        for (ranks, device), places in found.values()
    )


def _shared_by(one: Tensor, flat: Mapping[int, Shared]) -> list[Shared]:
    if id(one) in flat:
        return [flat[id(one)]]
    if not is_dtensor(one):
        return []
    mesh = one.device_mesh
    return [(mesh.get_group(axis), mesh.device_type) for axis in sharded_axes(one)]


def _shares(sharded: set[int], parameters: Sequence[Tensor], ranks: int) -> Tensor | None:
    if len(sharded) == len(parameters):
        return None
    shares = [1.0 if place in sharded else 1.0 / ranks for place in range(len(parameters))]
    return torch.tensor(shares, dtype=torch.float64, device=parameters[0].device)


@dataclass(slots=True)
class Reader:
    """Reads the gradients of a fixed list of parameters."""

    parameters: Sequence[Tensor]
    groups: tuple[Group, ...] = ()
    plain: bool = True  # no DTensor among them
    double: bool = False  # some are float64

    def grads(self) -> list[Tensor]:
        """The local part of every gradient that is there, dense, sharing memory with it."""
        return [grad for grad in self.all() if grad is not None]

    def all(self) -> list[Tensor | None]:
        """The local part of every gradient, None where there is none."""
        grads = [one.grad for one in self.parameters]
        if self._are_plain(grads):
            return grads
        return [None if one is None else local(one) for one in grads]

    def norms(self, *, double: bool = False, settle: bool = True) -> Tensor:
        """The norm of every gradient over all ranks [parameters], float64; 0 for a missing one.

        With `settle` the gradients become what the optimizer will use, for who changes them next.

        Every rank must call it, one without gradients too: the others wait for it.
        """
        norms = self._mine(self._settled(keep=settle), double=double)
        if not self.groups:
            return norms
        norms.square_()
        for group in self.groups:
            group.sum_(norms)
        return norms.sqrt_()

    def _settled(self, *, keep: bool) -> list[Tensor | None]:
        """Every gradient as the optimizer will use it: coalesced, without partial sums."""
        grads = [one.grad for one in self.parameters]
        if self._are_plain(grads):
            return grads
        found = [g if g is None or not is_unsettled(g) else settled(g) for g in grads]
        for one, before, grad in zip(self.parameters, grads, found, strict=True):
            if keep and grad is not before:
                one.grad = grad
        return [None if one is None else local(one) for one in found]

    def _are_plain(self, grads: Sequence[Tensor | None]) -> bool:
        """Whether gradients are what they seem: asked in one line, for thousands in each step."""
        return self.plain and not any(one is not None and one.is_sparse for one in grads)

    def _mine(self, every: Sequence[Tensor | None], *, double: bool) -> Tensor:
        """The norm of what lies on this rank."""
        there = [grad for grad in every if grad is not None]
        mine = norms_of(there, double=double)
        if len(there) == len(every):
            return mine
        home = mine.device if there else self.parameters[0].device
        norms = torch.zeros(len(every), dtype=torch.float64, device=home)
        norms[[place for place, grad in enumerate(every) if grad is not None]] = mine
        return norms


def local(grad: Tensor) -> Tensor:
    """The part of a gradient that lies on this rank, as a plain dense tensor that shares memory.

    The values of a sparse gradient must have been coalesced.
    """
    part = to_local(grad)
    if part.layout is torch.strided:
        return part
    # the public values() refuses gradients that are not coalesced
    values: Tensor = part._values()
    return values


def is_unsettled(grad: Tensor) -> bool:
    """Whether the values of a gradient are yet to be added up, to those that are used."""
    if is_dtensor(grad):
        return has_partial_sums(grad)
    return grad.layout is torch.sparse_coo and not grad.is_coalesced()


def settled(grad: Tensor) -> Tensor:
    """A gradient whose values are added up, as the optimizer would do it."""
    return without_partial_sums(grad) if is_dtensor(grad) else grad.coalesce()


def norms_of(grads: Sequence[Tensor], *, double: bool = False) -> Tensor:
    """The 2-norms of plain dense tensors, float64 [tensors]; half types are summed in float32.

    With `double` they are summed in float64, and scaled, so that no finite gradient overflows.
    """
    if not grads:
        return torch.zeros(0, dtype=torch.float64)
    if double:
        norms = [_scaled(_real(one).double()) for one in grads]
    elif not HALF.isdisjoint({one.dtype for one in grads}):
        norms = [_in_float32(one) for one in grads]
    else:
        norms = list(torch._foreach_norm(list(grads)))  # private; torch's own clipping calls it
    if len({one.get_device() for one in norms}) > 1:
        home = norms[0].device
        norms = [one.to(home, non_blocking=True) for one in norms]
    return torch.stack(norms).double()


def _in_float32(grad: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(
        grad, dtype=torch.float32 if grad.dtype in HALF else None
    )
    return norm


def _scaled(grad: Tensor) -> Tensor:
    """The norm of a float64 tensor whose squares may overflow."""
    peak = grad.abs().max() if grad.numel() else grad.sum()
    if not 0 < peak < torch.inf:
        return peak
    norm: Tensor = torch.linalg.vector_norm(grad / peak)
    return norm * peak


def _real(grad: Tensor) -> Tensor:
    return torch.view_as_real(grad) if grad.is_complex() else grad
