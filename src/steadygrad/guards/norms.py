"""The one pass over the gradients: the norm of each, over all ranks.

Every gradient is read once, where it lies, by one call for all. The squares of shards are summed in
one collective for each process group, over the parameters sharded on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from steadygrad.guards.dtensor import is_dtensor, placements, to_local

HALF = {torch.float16, torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Group:
    """The ranks of one process group, and the places of the parameters that are sharded on it.

    `device` is where its collectives run; None: where the parameters lie.
    """

    ranks: Any  # a ProcessGroup, which torch declares without a public type
    places: tuple[int, ...]
    device: str | None = None

    def sum_(self, squares: Tensor) -> None:
        """Sum squares [parameters] over the ranks, in place, those of this group's parameters."""
        at = torch.tensor(self.places, device=squares.device)
        part = squares[at].to(self.device or squares.device)
        dist.all_reduce(part, group=self.ranks)
        squares[at] = part.to(squares.device)


def groups_of(parameters: Sequence[Tensor], flat: Mapping[int, Any]) -> tuple[Group, ...]:
    """Find the process groups of DTensors, and of FSDP1's parameters: {id: group} in `flat`.

    Groups come in the order of the parameters, which is the same on all ranks.
    """
    found: dict[int, tuple[Any, str | None, list[int]]] = {}
    for place, one in enumerate(parameters):
        ranks = [(flat[id(one)], None)] if id(one) in flat else _sharded_over(one)
        for group, device in ranks:
            if dist.get_world_size(group) > 1:
                found.setdefault(id(group), (group, device, []))[2].append(place)
    return tuple(Group(group, tuple(places), device) for group, device, places in found.values())


def _sharded_over(one: Tensor) -> list[tuple[Any, str | None]]:
    if not is_dtensor(one):
        return []
    mesh = one.device_mesh
    axes = [axis for axis, placement in enumerate(placements(one)) if placement.is_shard()]
    return [(mesh.get_group(axis), mesh.device_type) for axis in axes]


@dataclass(slots=True)
class Reader:
    """Reads the gradients of a fixed list of parameters."""

    parameters: Sequence[Tensor]
    groups: tuple[Group, ...] = ()
    plain: bool = True  # no DTensor among them

    def grads(self) -> list[Tensor]:
        """The local part of every gradient that is there, dense, sharing memory with it."""
        return [grad for grad in self.all() if grad is not None]

    def norms(self, *, double: bool = False) -> Tensor:
        """The norm of every gradient over all ranks [parameters], float64; 0 for a missing one."""
        every = self.all(settle=True)
        there = [grad for grad in every if grad is not None]
        mine = norms_of(there, double=double)
        if len(there) == len(every) and not self.groups:
            return mine
        home = mine.device if there else self.parameters[0].device
        norms = torch.zeros(len(every), dtype=torch.float64, device=home)
        norms[[place for place, grad in enumerate(every) if grad is not None]] = mine
        if not self.groups:
            return norms
        norms.square_()
        for group in self.groups:
            group.sum_(norms)
        return norms.sqrt_()

    def all(self, *, settle: bool = False) -> list[Tensor | None]:
        """The local part of every gradient, None where there is none; settled ones are to read."""
        grads = [one.grad for one in self.parameters]
        if self.plain and not any(one is not None and one.is_sparse for one in grads):
            return grads
        return [one if one is None else local(settled(one) if settle else one) for one in grads]


def local(grad: Tensor) -> Tensor:
    """The part of a gradient that lies on this rank, as a plain dense tensor that shares memory.

    The values of a sparse gradient must have been coalesced.
    """
    part = to_local(grad)
    # the public values() refuses what is not coalesced
    return part._values() if part.layout is torch.sparse_coo else part


def settled(grad: Tensor) -> Tensor:
    """A gradient whose values add up to what the optimizer will use: coalesced, no partial sums."""
    partial = [one.is_partial() for one in placements(grad)]
    if is_dtensor(grad) and any(partial):
        return _summed(grad, partial)
    if grad.layout is torch.sparse_coo and not grad.is_coalesced():
        return grad.coalesce()
    return grad


def _summed(grad: Any, partial: Sequence[bool]) -> Tensor:  # a DTensor
    from torch.distributed.tensor import Replicate

    pairs = zip(grad.placements, partial, strict=True)
    summed: Tensor = grad.redistribute(placements=[Replicate() if p else one for one, p in pairs])
    return summed


def norms_of(grads: Sequence[Tensor], *, double: bool = False) -> Tensor:
    """The 2-norms of plain dense tensors, float64 [tensors]; half types are summed in float32.

    With `double` squares are summed in float64, where those of float32 can't overflow.
    """
    if not grads:
        return torch.zeros(0, dtype=torch.float64)
    if double:
        norms = [torch.linalg.vector_norm(_real(one), dtype=torch.float64) for one in grads]
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


def _real(grad: Tensor) -> Tensor:
    return torch.view_as_real(grad) if grad.is_complex() else grad
