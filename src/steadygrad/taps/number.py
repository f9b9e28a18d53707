"""A number of a tensor, read where that costs nothing; see `guards.number`."""

from __future__ import annotations

from torch import Tensor

from steadygrad.guards.number import Number


def number_of(tensor: Tensor) -> Number:
    """The value of a tensor of one element: a float on the CPU, a 0-d tensor on a device."""
    if tensor.device.type == "cpu":
        return float(tensor)
    return tensor.detach().reshape(())
