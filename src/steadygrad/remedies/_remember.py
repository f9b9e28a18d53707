"""Remember what went into an op, so that the op can be undone where its result is used."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.autograd.graph import Node

VIEWS = re.compile(r"^(View|UnsafeView|Reshape|Squeeze|Unsqueeze|Alias)Backward")


class Remembered:
    """The inputs of some calls in this pass, by the autograd node of their results."""

    def __init__(self) -> None:
        self._inputs: dict[Node, tuple[Tensor, Any]] = {}
        self.found = 0

    def calling(
        self, function: Callable[..., Any], note: Callable[..., Any] = lambda *_, **__: None
    ) -> Callable[..., Any]:
        """The function, of which the input is remembered with what `note` makes of the call."""

        def called(input: Tensor, *args: Any, **kwargs: Any) -> Any:
            out = function(input, *args, **kwargs)
            if out.grad_fn is not None:
                self._inputs[out.grad_fn] = (input, note(input, *args, **kwargs))
            return out

        return called

    def before(self, result: Tensor) -> tuple[Tensor, Any] | None:
        """What went into the call that made a result, through views that keep the order.

        Everything that was remembered is let go of.
        """
        node = result.grad_fn
        while node is not None and node not in self._inputs and VIEWS.match(node.name()):
            node = node.next_functions[0][0]
        known = None if node is None else self._inputs.get(node)
        self._inputs.clear()
        self.found += known is not None
        return known
