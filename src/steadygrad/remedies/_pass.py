"""One more forward pass of the scene, of which nothing stays behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

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


@contextmanager
def given_to(
    model: nn.Module, note: Callable[[tuple[Any, ...], dict[str, Any]], None]
) -> Iterator[None]:
    """Call `note` with what the model is given, at each of its calls inside the block."""
    handle = model.register_forward_pre_hook(
        lambda _, args, kwargs: note(args, kwargs), with_kwargs=True
    )
    try:
        yield
    finally:
        handle.remove()
