"""DTensors, without importing what most programs never load."""

from __future__ import annotations

from typing import Any, TypeGuard

from torch import Tensor


def is_dtensor(tensor: Tensor) -> TypeGuard[Any]:  # DTensor itself is not imported
    """Whether a tensor is a DTensor, told by its class: asked for each gradient in each step."""
    kind = type(tensor)
    return kind.__name__ == "DTensor" and kind.__module__.startswith("torch.distributed.")


def to_local(tensor: Tensor) -> Tensor:
    """The part of a DTensor that lies on this rank; any other tensor itself."""
    if not is_dtensor(tensor):
        return tensor
    part: Tensor = tensor.to_local()
    return part


def sharded_axes(tensor: Tensor) -> list[int]:
    """The axes of its mesh over which a DTensor is sharded; of another tensor, none.

    torch's `is_shard` says no to the strided shards of FSDP2 over tensor parallelism.
    """
    if not is_dtensor(tensor):
        return []
    return [
        axis
        for axis, one in enumerate(tensor.placements)
        if not (one.is_replicate() or one.is_partial())
    ]


def has_partial_sums(tensor: Any) -> bool:  # a DTensor
    """Whether the values of a DTensor are yet to be added up over ranks."""
    return any(one.is_partial() for one in tensor.placements)


def without_partial_sums(tensor: Any) -> Tensor:  # a DTensor
    """The same DTensor with its values added up over ranks."""
    from torch.distributed.tensor import Replicate

    placements = [Replicate() if one.is_partial() else one for one in tensor.placements]
    whole: Tensor = tensor.redistribute(placements=placements)
    return whole
