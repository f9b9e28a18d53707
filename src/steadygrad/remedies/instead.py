"""Call other functions instead of some of torch's, as a Change asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.overrides import TorchFunctionMode

Functions = Mapping[Callable[..., Any], Callable[..., Any]]


class Instead(TorchFunctionMode):
    """Call `functions[f]` for every call of f inside the block; what it calls is left alone."""

    def __init__(self, functions: Functions) -> None:
        super().__init__()
        self._functions = functions

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,  # torch's own signature
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # whatever is returned
        """Run a torch function, or the one that stands in for it."""
        return self._functions.get(func, func)(*args, **(kwargs or {}))
