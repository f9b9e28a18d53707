"""Find out how an optimizer's parameters are laid out over ranks."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from steadygrad.guards.dtensor import is_dtensor
from steadygrad.guards.norms import Reader, groups_of


def reader_of(optimizer: Optimizer, model: nn.Module | None) -> Reader:
    """A reader of all gradients of an optimizer, over the process groups that share them."""
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    flat = {} if model is None else _flat(model)
    if not flat and any(_is_flat(one) for one in parameters):
        raise ValueError(
            "expected the model beside an optimizer of FSDP1 parameters, got the optimizer alone: "
            "sg.guard(optimizer, ..., model=model), so that norms are summed over its ranks"
        )
    plain = not any(is_dtensor(one) for one in parameters)
    return Reader(parameters, groups_of(parameters, flat), plain)


def _is_flat(one: Tensor) -> bool:
    """Whether FSDP1 made a parameter a piece of a flat one: torch marks both kinds."""
    return type(one).__name__ == "FlatParameter" or getattr(one, "_fsdp_flattened", False)


def _flat(model: nn.Module) -> dict[int, Any]:
    """The process groups of FSDP1's parameters, by id, the flat one's and the original ones'."""
    module = sys.modules.get("torch.distributed.fsdp")
    if module is None:
        return {}
    found: dict[int, Any] = {}
    for wrapped in module.FullyShardedDataParallel.fsdp_modules(model):
        handle = getattr(wrapped, "_handle", None)
        if handle is None or not getattr(handle, "uses_sharded_strategy", True):
            continue
        originals = getattr(handle.flat_param, "_params", None) or ()
        found |= {id(one): wrapped.process_group for one in (handle.flat_param, *originals)}
    return found
