"""One more forward pass of the scene, of which nothing stays behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from steadygrad.probe.subject import replayed, rng_states
from steadygrad.remedies.remedy import Scene, Unfit


def first_loss(scene: Scene) -> Tensor:
    """Compute the loss of the first batch, its graph alive; raise Unfit where it cannot be.

    Buffers of the model and the state of torch's random generators are left as they were.
    """
    if scene.loss is None:
        raise Unfit("The loss of the first batch cannot be computed again here.")
    with _kept(scene.model), replayed(rng_states()), torch.enable_grad():
        return scene.loss(scene.model)


@contextmanager
def _kept(model: nn.Module) -> Iterator[None]:
    """Write the model's buffers back at the end of the block."""
    before = [(one, one.clone()) for one in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for one, value in before:
                one.copy_(value)
