"""Names for an optimizer's parameters, in the order of its groups."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer


def names_of(optimizer: Optimizer, model: nn.Module | None) -> list[str]:
    """The model's names, else those the optimizer was given, else places in its groups."""
    mine = {} if model is None else {id(one): name for name, one in model.named_parameters()}
    return [
        mine.get(id(one)) or given or f"param_groups[{number}].params[{place}]"
        for number, group in enumerate(optimizer.param_groups)
        for place, (one, given) in enumerate(
            zip(
                group["params"],
                group.get("param_names") or [""] * len(group["params"]),
                strict=True,
            )
        )
    ]
