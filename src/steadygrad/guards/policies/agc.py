"""Clip each unit of a layer by the size of its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from steadygrad.guards.dtensor import is_dtensor, placements
from steadygrad.guards.gradients import Decision, Gradients
from steadygrad.guards.norms import local
from steadygrad.guards.policies.checks import positive
from steadygrad.guards.policy import Stateless


@dataclass
class clip_agc(Stateless):  # noqa: N801 - reads as a function where it is used
    """Adaptive gradient clipping: each unit's gradient norm to at most `factor` of its weight's.

    A unit is a row of a weight [out, ...], or a whole vector. The norm of its weight counts as at
    least `eps`, so that units that start at zero can leave it. `exclude` are beginnings of names
    that are left alone; the authors leave out the last layer.

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

    def decide(self, gradients: Gradients) -> Decision:
        """Scale units, in place."""
        return Decision(rewrite=self._scale)

    def _scale(self, gradients: Gradients) -> None:
        for name, one in zip(gradients.names, gradients.parameters, strict=True):
            if one.grad is None or one.grad.is_sparse or name.startswith(tuple(self.exclude)):
                continue
            grad, weight = local(one.grad), local(one.detach())
            size, limit = _unit_norms(grad, one), _unit_norms(weight, one)
            limit = limit.clamp_min(self.eps) * self.factor
            factor = torch.where(size > limit, limit / size.clamp_min(1e-30), 1.0)
            grad.mul_(factor.to(grad.real.dtype))


def _unit_norms(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Norms of the units, [out, 1, ...] or a single one, over all ranks, in float32 at least."""
    axes = tuple(range(1, tensor.dim())) if tensor.dim() > 1 else None
    wide = torch.promote_types(tensor.dtype, torch.float32)
    norms = torch.linalg.vector_norm(tensor.to(wide), dim=axes, keepdim=axes is not None)
    apart = [
        axis
        for axis, placement in enumerate(placements(parameter))
        if placement.is_shard() and (axes is None or placement.dim != 0)
    ]
    if not apart or not is_dtensor(parameter):
        return torch.as_tensor(norms)
    squares = norms.square()
    for axis in apart:
        dist.all_reduce(squares, group=parameter.device_mesh.get_group(axis))
    whole: Tensor = squares.sqrt()
    return whole
