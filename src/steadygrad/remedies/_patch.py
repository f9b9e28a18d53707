"""Carry out the lines of a patch, so that what is tried is what the user is told to paste."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its customary name

from steadygrad.remedies.remedy import Scene


def carry_out(scene: Scene, patch: str) -> dict[str, Any]:  # Any: whatever the patch names
    """Run a patch of ours on the scene's model and optimizer; return the names it has set.

    Names of modules come into a patch by `repr`, so that nothing of the user's is executed.
    """
    names: dict[str, Any] = {
        "model": scene.model,
        "optimizer": scene.optimizer,
        "torch": torch,
        "nn": nn,
        "F": F,
    }
    exec(patch, names)
    return names


def listed(names: Iterable[str]) -> str:
    """A list of names as code, broken into lines where it is long."""
    inside = ", ".join(repr(name) for name in names)
    if len(inside) < 70:
        return f"[{inside}]"
    lines = textwrap.fill(inside, 68, break_long_words=False, break_on_hyphens=False)
    return "[\n" + textwrap.indent(lines, "    ") + "\n]"


def rounded(value: float, digits: int = 4) -> float:
    """A number as it is shown, so that what is shown is what is used."""
    return float(f"{value:.{digits}g}")
