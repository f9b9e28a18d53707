"""Whether torch compiles a part of what is trained."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable
from types import FunctionType

from torch import nn


def is_compiled(models: Iterable[nn.Module]) -> bool:
    """Whether a part of some models is compiled."""
    parts = (part for model in models for part in model.modules())
    return any(_is_wrapper(part) or vars(part).get("_compiled_call_impl") for part in parts)


def has_compiled() -> bool:
    """Whether there is a module or a function that torch compiles when it is called."""
    if "torch._dynamo" not in sys.modules:
        return False
    return any(_is_wrapper(one) or _is_function(one) for one in gc.get_objects())


def _is_wrapper(one: object) -> bool:
    return type(one).__name__ == "OptimizedModule" and isinstance(one, nn.Module)


def _is_function(one: object) -> bool:
    """Whether a function is what torch.compile returns; torch marks those it keeps out too."""
    marks = vars(one) if type(one) is FunctionType else {}
    return "_torchdynamo_orig_callable" in marks and "_torchdynamo_disable" not in marks
