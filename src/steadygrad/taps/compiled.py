"""Whether torch compiles a part of what is trained."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable

from torch import nn


def is_compiled(models: Iterable[nn.Module]) -> bool:
    """Whether a part of some models is compiled."""
    parts = (part for model in models for part in model.modules())
    return any(_is_wrapper(part) or vars(part).get("_compiled_call_impl") for part in parts)


def has_compiled() -> bool:
    """Whether anything was compiled in this process, or is about to be when it is called."""
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is None:
        return False
    frames = vars(dynamo)["utils"].counters["frames"] if "utils" in vars(dynamo) else {}
    return bool(frames) or any(_is_wrapper(one) for one in gc.get_objects())


def _is_wrapper(one: object) -> bool:
    return type(one).__name__ == "OptimizedModule" and isinstance(one, nn.Module)
