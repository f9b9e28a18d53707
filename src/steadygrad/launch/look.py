"""Join a launcher and a check: hand over what was captured, tell the user's faults from ours."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

from torch import nn

import steadygrad
from steadygrad._check import check
from steadygrad.core.report import Report
from steadygrad.numerics.compared import Comparison
from steadygrad.numerics.compared import check as check_numerically
from steadygrad.replay.captured import CannotLook, Captured, UsersError

OURS = Path(steadygrad.__path__[0])


def look_at(captured: Captured, *, target: str, seed: int, probes: bool) -> Report:
    """Check what was captured.

    Raises UsersError when the model's forward pass raises, CannotLook when it cannot be run.
    """
    facts: dict[str, Any] = {**captured.facts}  # JSON-like, see core.record.Facts
    if captured.blind:
        facts["blind"] = dict(captured.blind)
    _expect_floats(captured.model)
    try:
        return check(
            captured.model,
            captured.inputs,
            loss=captured.loss,
            optimizer=captured.optimizer,
            target=target,
            seed=seed,
            probes=probes,
            facts=facts,
        )
    except Exception as error:
        if users_code_raised(error):
            raise UsersError from error
        if isinstance(error, (TypeError, ValueError)):
            raise CannotLook(str(error)) from error
        raise


def compared(captured: Captured, *, seed: int) -> Comparison:
    """Compare autograd's gradient of what was captured with one found by differences.

    Raises CannotLook when they cannot be compared.
    """
    _expect_floats(captured.model)
    try:
        return check_numerically(captured.model, captured.inputs, loss=captured.loss, seed=seed)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CannotLook(
            f"expected a model and a loss that run in float64, got {type(error).__name__}: {error}"
        ) from error


def _expect_floats(model: nn.Module) -> None:
    kinds = {str(p.dtype).removeprefix("torch.") for p in model.parameters()}
    if not kinds:
        raise CannotLook("expected a model with parameters, it has none: nothing can be trained")
    if not any(p.is_floating_point() or p.is_complex() for p in model.parameters()):
        raise CannotLook(
            f"expected floating-point parameters, got {', '.join(sorted(kinds))} only: give the "
            "model before it was quantised"
        )


def users_code_raised(error: BaseException) -> bool:
    """Whether an exception came out of the user's forward pass, and not out of a probe.

    The last frame of ours then belongs to the verb or the launcher, which run that pass; frames of
    a Trace, which stand between any op and its caller, do not count.
    """
    frames = [
        Path(frame.filename)
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.name not in ("__torch_function__", "before", "after")
    ]
    ours = [place for place, file in enumerate(frames) if file.is_relative_to(OURS)]
    if not ours or ours[-1] == len(frames) - 1:
        return False
    last = frames[ours[-1]]
    return last == OURS / "_check.py" or last.parent in (OURS / "launch", OURS / "replay")
