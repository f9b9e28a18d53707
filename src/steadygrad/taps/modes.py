"""The bottom of the stack of torch function modes: where no block of the user's ends."""

from __future__ import annotations

import torch
from torch.overrides import TorchFunctionMode, _pop_mode, _push_mode
from torch.utils._device import DeviceContext


def put_beneath(mode: TorchFunctionMode | None, kind: type[TorchFunctionMode]) -> bool:
    """Take every mode of a kind off the stack, and put one on; whether there was one.

    It stands at the bottom, where no block of the user's ends, but above a default device, which
    torch wants to find there.
    """
    modes = [_pop_mode() for _ in range(torch._C._len_torch_function_stack())][::-1]
    kept: list[TorchFunctionMode] = [one for one in modes if not isinstance(one, kind)]
    found = len(kept) < len(modes)
    if mode is not None:
        place = 1 if kept and isinstance(kept[0], DeviceContext) else 0
        kept.insert(place, mode)
    for one in kept:
        _push_mode(one)
    return found
