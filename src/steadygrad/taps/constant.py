"""What a constant prediction costs by a loss that a model computes itself, out of the tape's sight.

See `targets` for the losses that a loop computes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steadygrad.guards.norms import local
from steadygrad.taps.targets import entropy_of

IGNORED = -100  # torch's own default


@dataclass(frozen=True, slots=True)
class LossCall:
    """A call of cross_entropy: the number of classes, and the targets."""

    classes: int
    target: Tensor
    ignored: int = IGNORED


def loss_call(args: Sequence[Any], kwargs: Mapping[str, Any]) -> LossCall | None:
    """A call of which it is known what a constant costs; None for another."""
    given = {**dict(zip(("input", "target"), args, strict=False)), **kwargs}
    scores, target = given.get("input"), given.get("target")
    if not isinstance(scores, Tensor) or not isinstance(target, Tensor) or scores.dim() < 2:
        return None
    plain = given.get("weight") is None and not given.get("label_smoothing")
    if not plain or given.get("reduction", "mean") != "mean" or target.is_floating_point():
        return None
    return LossCall(scores.shape[1], target.detach(), int(given.get("ignore_index", IGNORED)))


@torch.no_grad()
def constant_of(call: LossCall) -> dict[str, Any]:
    """The fact `constant`, JSON-like; {} without a single label."""
    target = local(call.target)
    kept = target[target != call.ignored]
    if not kept.numel():
        return {}
    entropy = entropy_of(kept)
    known = {"classes": call.classes, "labels_entropy": entropy, "count": kept.numel()}
    return {"loss": entropy, **known}
