"""What the best constant prediction would cost on a batch: a loss no better has learned nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steadygrad.guards.norms import local
from steadygrad.replay.tape import LOSSES

ARGUMENTS = ("input", "target")
MODULES = {
    "CrossEntropyLoss": "cross_entropy",
    "MSELoss": "mse_loss",
    "BCEWithLogitsLoss": "binary_cross_entropy_with_logits",
    "BCELoss": "binary_cross_entropy",
}
FUNCTIONS = LOSSES
IGNORED = -100  # torch's own default


@dataclass(frozen=True, slots=True)
class LossCall:
    """A call of a loss function: its name, the shape of the predictions, and the targets."""

    name: str
    shape: tuple[int, ...]
    target: Tensor
    ignored: int = IGNORED


def loss_call(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any], settings: Mapping[str, Any]
) -> LossCall | None:
    """A call whose constant can be told; None for another.

    `settings` are those of the module, where it was one.
    """
    given = {**settings, **dict(zip(ARGUMENTS, args, strict=False)), **kwargs}
    prediction, target = given.get("input"), given.get("target")
    if not isinstance(prediction, Tensor) or not isinstance(target, Tensor):
        return None
    weighted = given.get("weight") is not None or given.get("pos_weight") is not None
    if weighted or given.get("reduction", "mean") != "mean" or given.get("label_smoothing"):
        return None
    ignored = int(given.get("ignore_index", IGNORED))
    return LossCall(name, tuple(prediction.shape), target.detach(), ignored)


@torch.no_grad()
def constant_of(call: LossCall) -> dict[str, Any]:
    """The fact `constant`, JSON-like; {} where a constant prediction means nothing."""
    target = local(call.target)
    if call.name == "cross_entropy":
        return _of_labels(call, target)
    if not target.is_floating_point() or len(target) < 2 or tuple(target.shape) != call.shape:
        return {}
    target = target.double()
    if call.name == "mse_loss":
        return {"name": call.name, "loss": float(target.var(0, unbiased=False).mean())}
    share = target.mean(0).clamp(0, 1)
    nats = -(torch.xlogy(share, share) + torch.xlogy(1 - share, 1 - share))
    return {"name": call.name, "loss": float(nats.mean())}


def _of_labels(call: LossCall, target: Tensor) -> dict[str, Any]:
    if target.is_floating_point() or len(call.shape) < 2:
        return {}
    kept = target[target != call.ignored]
    if not kept.numel():
        return {}
    share = torch.bincount(kept.flatten()).double() / kept.numel()
    entropy = -float(torch.xlogy(share, share).sum())
    known = {"name": call.name, "classes": call.shape[1], "count": kept.numel()}
    return {**known, "loss": entropy, "labels_entropy": entropy} if math.isfinite(entropy) else {}
