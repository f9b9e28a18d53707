"""Numbers that are floats where reading them costs nothing, and tensors where it would wait."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Number = float | Tensor  # a tensor is 0-d, on a device


def number_of(tensor: Tensor) -> Number:
    """The value of a tensor of one element: a float on the CPU."""
    if tensor.device.type == "cpu":
        return float(tensor)
    return tensor.detach().reshape(())


def packed(numbers: Sequence[Number], like: Tensor) -> Tensor:
    """Numbers as one float64 tensor on the device of another."""
    rows = [torch.as_tensor(one, dtype=torch.float64, device=like.device) for one in numbers]
    return torch.stack([row.reshape(()) for row in rows])
