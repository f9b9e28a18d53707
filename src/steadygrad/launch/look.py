"""Join a launcher and `check`: hand over what was captured, tell the user's faults from ours."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import steadygrad
from steadygrad._check import check
from steadygrad.core.report import Report
from steadygrad.launch.captured import CannotLook, Captured, UsersError

OURS = str(Path(steadygrad.__path__[0]))


def look_at(captured: Captured, *, target: str, seed: int, probes: bool) -> Report:
    """Check what was captured.

    Raises UsersError when the model's forward pass raises, CannotLook when it cannot be run.
    """
    facts: dict[str, Any] = {**captured.facts}  # JSON-like, see core.record.Facts
    if captured.blind:
        facts["blind"] = dict(captured.blind)
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
    except (TypeError, ValueError) as error:
        if _is_ours(error):
            raise CannotLook(str(error)) from None
        raise UsersError from error
    except Exception as error:  # noqa: BLE001 - a forward pass may raise anything
        if _is_ours(error):
            raise
        raise UsersError from error


def _is_ours(error: BaseException) -> bool:
    """Whether an exception was raised by a line of ours, and not below a call of the user's."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and frames[-1].filename.startswith(OURS)
