"""Numbers in the data that are NaN or infinite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from steadygrad.probe.tree import map_tensors
from steadygrad.remedies.remedy import Change, Scene, Unfit, remedy


@remedy("drop-bad-samples", "data", cures=("G001",), size=2)
def drop_bad_samples(scene: Scene) -> Change:
    """Leave out samples whose inputs are NaN or infinite.

    In a trial such numbers become zero where the model is called, which is next to leaving their
    samples out where these are few.

    **When it fails.** The target is broken, not the input. Many samples are bad: what is left is no
    longer what was to be learned. -inf that is a mask becomes zero as well.

    **Reference.** van Buuren 2018, section 1.3.1, on complete cases, and when they deceive.
    """
    if scene.loss is None:
        raise Unfit("The first batch is not known, so that nothing is known of its numbers.")

    def finite(_module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        changed: tuple[Any, Any] = map_tensors((args, kwargs), _zeroed)
        return changed

    scene.model.register_forward_pre_hook(finite, with_kwargs=True)
    patch = "# x, y = a batch\nbad = ~torch.isfinite(x).flatten(1).all(1)\nx, y = x[~bad], y[~bad]"
    return Change("\n".join(f"# {line}" for line in patch.splitlines()), imitates=True)


def _zeroed(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    return torch.nan_to_num(tensor, nan=0.0, posinf=0.0, neginf=0.0)
