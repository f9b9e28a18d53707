"""DTensors, without importing what most programs never load."""

from __future__ import annotations

import sys
from typing import Any, TypeGuard

from torch import Tensor

HOMES = ("torch.distributed.tensor", "torch.distributed._tensor")  # the second: torch 2.4


def is_dtensor(tensor: Tensor) -> TypeGuard[Any]:  # DTensor itself is not imported
    """Whether a tensor is a DTensor; there is none before its module has been imported."""
    if type(tensor).__name__ != "DTensor":
        return False
    return any(
        isinstance(tensor, sys.modules[home].DTensor) for home in HOMES if home in sys.modules
    )


def placements(tensor: Tensor) -> list[Any]:
    """The placements of a DTensor, in the order of its mesh's axes; of others, none."""
    return list(tensor.placements) if is_dtensor(tensor) else []


def to_local(tensor: Tensor) -> Tensor:
    """The part of a DTensor that lies on this rank; any other tensor itself."""
    if not is_dtensor(tensor):
        return tensor
    part: Tensor = tensor.to_local()
    return part
