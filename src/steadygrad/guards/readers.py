"""Find out how an optimizer's parameters are laid out over ranks."""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from steadygrad.guards.dtensor import is_dtensor
from steadygrad.guards.norms import Reader, Shared, groups_of


def reader_of(optimizer: Optimizer, model: nn.Module | None) -> Reader:
    """A reader of all gradients of an optimizer, over the process groups that share them."""
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    if model is None and any(is_flat(one) for one in parameters):
        raise ValueError(
            "expected the model beside an optimizer of FSDP1 parameters, got the optimizer alone: "
            "sg.guard(optimizer, ..., model=model), so that norms are summed over its ranks"
        )
    flat = {} if model is None else _flat(model)
    plain = not any(is_dtensor(one) for one in parameters)
    double = any(one.dtype is torch.float64 for one in parameters)
    return Reader(parameters, groups_of(parameters, flat), plain, double)


def is_flat(one: Tensor) -> bool:
    """Whether FSDP1 has made a parameter a piece of a flat one: torch marks both."""
    return getattr(one, "_fsdp_flattened", False)


def _flat(model: nn.Module) -> dict[int, Shared]:
    """What FSDP1's sharded parameters are shared by, by id: the flat ones and the original ones."""
    module = sys.modules.get("torch.distributed.fsdp")
    if module is None:
        return {}
    found: dict[int, Shared] = {}
    for wrapped in module.FullyShardedDataParallel.fsdp_modules(model):
        handle = getattr(wrapped, "_handle", None)
        if handle is None or not handle.uses_sharded_strategy:
            continue
        shared = (wrapped.process_group, wrapped.compute_device.type)
        originals = handle.flat_param._params or ()
        found |= {id(one): shared for one in (handle.flat_param, *originals)}
    return found
