"""Clip each unit of a layer by the size of its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from steadygrad.guards.dtensor import sharded_axes, to_local
from steadygrad.guards.gradients import Decision, Gradients
from steadygrad.guards.policies.checks import positive
from steadygrad.guards.policy import Stateless, Surroundings
from steadygrad.guards.readers import is_flat


@dataclass
class clip_agc(Stateless):  # noqa: N801 - reads as a function where it is used
    """Adaptive gradient clipping: each unit's gradient norm to at most `factor` of its weight's.

    A unit is a row of a weight [out, ...], or a whole vector. The norm of its weight counts as at
    least `eps`, so that units that start at zero can leave it. `exclude` are beginnings of names
    that are left alone; the authors leave out the last layer. Sparse gradients, of embeddings, are
    left alone too.

    **Reference.** Brock 2021, section 4, equation 3; factor 0.01 at batch size 4096, eps 1e-3.
    """

    factor: float = 0.01
    eps: float = 1e-3
    exclude: Sequence[str] = ()
    name: str = "clip_agc"

    def __post_init__(self) -> None:
        positive("factor", self.factor)
        positive("eps", self.eps)
        self.exclude = (self.exclude,) if isinstance(self.exclude, str) else tuple(self.exclude)
        if not all(isinstance(one, str) for one in self.exclude):
            raise TypeError(f"exclude must hold beginnings of names, got {self.exclude!r}")

    def attach(self, surroundings: Surroundings) -> None:
        """Refuse weights that have lost their rows."""
        groups = surroundings.optimizer.param_groups
        if any(is_flat(one) for group in groups for one in group["params"]):
            raise ValueError(
                f"{self.name} expected weights with rows, got FSDP1's flat pieces of them: "
                "shard with torch.distributed.fsdp.fully_shard, which keeps rows"
            )

    def decide(self, gradients: Gradients) -> Decision:
        """Scale units, in place."""
        return Decision(rewrite=self._scale)

    def _scale(self, gradients: Gradients) -> None:
        chosen = [
            one
            for name, one in zip(gradients.names, gradients.parameters, strict=True)
            if not name.startswith(tuple(self.exclude)) and not _is_sparse(one)
        ]
        weights = [_unit_squares(to_local(one.detach())) for one in chosen]
        grads = [
            torch.zeros_like(weight) if one.grad is None else _unit_squares(to_local(one.grad))
            for one, weight in zip(chosen, weights, strict=True)
        ]
        _add_up([*chosen, *chosen], [*weights, *grads])
        for one, weight, size in zip(chosen, weights, grads, strict=True):
            if one.grad is not None:
                limit, norm = weight.sqrt().clamp_min(self.eps) * self.factor, size.sqrt()
                factor = torch.where(norm > limit, limit / norm, 1.0)
                part = to_local(one.grad)
                part.mul_(factor.to(part.real.dtype))


def _is_sparse(one: Tensor) -> bool:
    return one.grad is not None and one.grad.is_sparse


def _unit_squares(tensor: Tensor) -> Tensor:
    """The squared norms of the units on this rank, [out, 1, ...] or a single one, in float64."""
    axes = tuple(range(1, tensor.dim())) if tensor.dim() > 1 else None
    wide = torch.promote_types(tensor.dtype, torch.float32)
    norms: Tensor = torch.linalg.vector_norm(tensor, dim=axes, keepdim=axes is not None, dtype=wide)
    return norms.double().square()


def _add_up(parameters: Sequence[Tensor], squares: Sequence[Tensor]) -> None:
    """Add up, in place, what several ranks hold of a unit: one collective for each group of them.

    All ranks add up the same, whether or not they have a gradient.
    """
    shared: dict[Any, list[Tensor]] = {}  # by ProcessGroup
    for one, square in zip(parameters, squares, strict=True):
        for group in _apart(one):
            shared.setdefault(group, []).append(square)
    for (group, device), parts in shared.items():
        together = torch.cat([one.flatten() for one in parts]).to(device)
        dist.all_reduce(together, group=group)
        sizes = [one.numel() for one in parts]
        for part, whole in zip(parts, together.split(sizes), strict=True):
            part.copy_(whole.view_as(part))


def _apart(one: Any) -> list[tuple[Any, str]]:  # a Tensor or a DTensor
    """The process groups over which a parameter's units are sharded, and where these sum."""
    axes = [axis for axis in sharded_axes(one) if one.dim() < 2 or one.placements[axis].dim != 0]
    return [(one.device_mesh.get_group(axis), one.device_mesh.device_type) for axis in axes]
