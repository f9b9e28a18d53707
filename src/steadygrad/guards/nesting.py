"""Steps within steps: torch runs the hooks of an optimizer at each class whose `step` is called."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from torch.optim import Optimizer


def is_nested(optimizer: Optimizer) -> bool:
    """Whether a hook of this optimizer runs in a step that its own outer step has called.

    A subclass whose `step` calls `super().step()` runs the hooks twice, once torch has wrapped the
    parent's too. Hooks can't tell that from a step that raised; the stack can.
    """
    hooked = [one for one in map(_step_of, type(optimizer).__mro__) if one is not None]
    if len(hooked) < 2:
        return False
    codes = {one.__code__ for one in hooked}
    frame: FrameType | None = sys._getframe(1)
    depth = 0
    while frame is not None and depth < 2:
        if frame.f_code in codes and frame.f_locals.get("args", (None,))[0] is optimizer:
            depth += 1
        frame = frame.f_back
    return depth > 1


def _step_of(kind: type) -> Any:  # a function that torch has made
    """A class's own step where torch has wrapped it to run hooks."""
    step = vars(kind).get("step")
    return step if getattr(step, "hooked", False) else None
