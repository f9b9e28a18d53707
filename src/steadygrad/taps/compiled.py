"""Whether torch compiles a part of what is trained."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable
from types import FunctionType

from torch import nn


def is_compiled(models: Iterable[nn.Module]) -> bool:
    """Whether a part of some models is compiled, also by what somebody else has wrapped it in."""
    parts = [part for model in models for part in model.modules()]
    inside = (_is_wrapper(part) or vars(part).get("_compiled_call_impl") for part in parts)
    return any(inside) or _is_wrapped(set(map(id, parts)))


def _is_wrapped(parts: set[int]) -> bool:
    home = sys.modules.get("torch._dynamo.eval_frame")
    if home is None or not parts:
        return False
    kind = vars(home)["OptimizedModule"]
    wrappers = (one for one in gc.get_objects() if type(one) is kind)
    return any(id(vars(one)["_modules"].get("_orig_mod")) in parts for one in wrappers)


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
