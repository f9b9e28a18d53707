"""Parameters that a loss reaches, whoever holds them."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

MOST = 50_000  # nodes of a graph that are walked: chosen by us, some tens of milliseconds


def leaves(roots: Iterable[Tensor]) -> list[nn.Parameter]:
    """The parameters to which the backward passes from some tensors bring a gradient."""
    waiting = [root.grad_fn for root in roots if root.grad_fn is not None]
    seen = set(waiting)
    found: dict[int, nn.Parameter] = {}
    while waiting and len(seen) < MOST:
        node = waiting.pop()
        variable = getattr(node, "variable", None)
        if isinstance(variable, nn.Parameter):
            found[id(variable)] = variable
        for child, _ in node.next_functions:
            if child is not None and child not in seen:
                seen.add(child)
                waiting.append(child)
    return list(found.values())
