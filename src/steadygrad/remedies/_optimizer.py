"""Parameters and the optimizer that steps them."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.optim import Optimizer


def held_by(optimizer: Optimizer) -> set[int]:
    """The ids of the parameters that an optimizer holds."""
    return {id(one) for group in optimizer.param_groups for one in group["params"]}


def hand_over(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Let an optimizer step further parameters, as it does those of its first group.

    A group of their own would be left out by schedulers that exist, or make them raise.
    """
    optimizer.param_groups[0]["params"].extend(parameters)
