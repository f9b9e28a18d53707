"""One more forward pass of the scene, of which nothing stays behind."""

from __future__ import annotations

import torch
from torch import Tensor

from steadygrad.probe.sandbox import buffers_put_back
from steadygrad.probe.subject import replayed, rng_states
from steadygrad.remedies.remedy import Scene, Unfit


def first_loss(scene: Scene) -> Tensor:
    """Compute the loss of the first batch, its graph alive; raise Unfit where it cannot be.

    Buffers of the model and the state of torch's random generators are left as they were.
    """
    if scene.loss is None:
        raise Unfit("The loss of the first batch cannot be computed again here.")
    with buffers_put_back(scene.model.buffers()), replayed(rng_states()), torch.enable_grad():
        return scene.loss(scene.model)
