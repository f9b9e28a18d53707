"""What is heard of a training loop: backward passes, clipping, loss scales, optimizer steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from steadygrad.taps.patch import Patch

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Listener(Protocol):
    """Who is told. Nothing that a listener does may reach the user's loop: it raises nothing."""

    def backward_begins(self, roots: Sequence[Tensor], weights: Sequence[Tensor | None]) -> None:
        """A backward pass starts on these tensors."""

    def backward_ended(self) -> None:
        """It is over, or has raised."""

    def gradients_measured(self, gradients: Sequence[Tensor]) -> Tensor | None:
        """Somebody wants the 2-norm of these: return it if it is known, bit by bit torch's own."""

    def gradients_clipped(self, max_norm: float) -> None:
        """Gradients are being clipped to a norm."""

    def values_clipped(self, gradients: Sequence[Tensor]) -> None:
        """Every element of these was clipped; they were measured before."""

    def loss_scaled(self, loss: Tensor, scaled: Tensor) -> None:
        """A loss was multiplied for half precision."""

    def gradients_unscaled(self) -> None:
        """The scale was taken off the gradients."""

    def scaler_steps(self, scaler: torch.amp.GradScaler, optimizer: Optimizer) -> None:
        """A scaler is about to step an optimizer, unless it finds gradients that are not finite."""

    def scaler_stepped(self, optimizer: Optimizer) -> None:
        """The scaler has stepped the optimizer, or has not."""

    def compiled(self) -> None:
        """Somebody compiles a model or a function."""

    def step_begins(self, optimizer: Optimizer, arguments: Arguments) -> Arguments | None:
        """An optimizer is about to step."""

    def step_ended(self, optimizer: Optimizer) -> None:
        """It has stepped."""


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Tell a listener of everything that happens in the block."""
    with ExitStack() as stack:
        parts = _backward, _clipping, _scaling, _compiling
        for patch in (one for part in parts for one in part(listener)):
            stack.callback(patch.remove)
        stack.callback(register_optimizer_step_pre_hook(_before(listener)).remove)
        stack.callback(register_optimizer_step_post_hook(_after(listener)).remove)
        yield


def _backward(listener: Listener) -> Iterator[Patch]:
    def around(backward: Callable[..., None]) -> Callable[..., None]:
        def heard(tensors: Any, grad_tensors: Any = None, *args: Any, **kwargs: Any) -> None:
            if torch._C._current_graph_task_id() != -1:  # a checkpoint's own, inside of another
                return backward(tensors, grad_tensors, *args, **kwargs)
            roots, given = _paired(tensors, grad_tensors)
            listener.backward_begins(roots, given)
            try:
                return backward(tensors, grad_tensors, *args, **kwargs)
            finally:
                listener.backward_ended()

        return heard

    yield Patch(torch.autograd, "backward", around)


def _paired(tensors: Any, weights: Any) -> tuple[list[Tensor], list[Tensor | None]]:
    """The roots of a backward pass that are tensors, each with its weight."""
    if isinstance(tensors, Tensor):
        return [tensors], [weights if isinstance(weights, Tensor) else None]
    if not isinstance(tensors, (list, tuple)):
        return [], []
    given = weights if isinstance(weights, (list, tuple)) else [weights] * len(tensors)
    pairs = [(t, w) for t, w in zip(tensors, given, strict=False) if isinstance(t, Tensor)]
    return [t for t, _ in pairs], [w for _, w in pairs]


def _clipping(listener: Listener) -> Iterator[Patch]:
    """Torch's own clipping, by all the names that it goes by; Trainers end there too."""
    utils = torch.nn.utils
    for owner, measure, cut in (
        (utils.clip_grad, "_get_total_norm", "_clip_grads_with_norm_"),
        (utils, "get_total_norm", "clip_grads_with_norm_"),
    ):
        if measure in vars(owner) and cut in vars(owner):  # not before torch 2.6
            yield Patch(owner, measure, partial(_measured, listener))
            yield Patch(owner, cut, partial(_clipped, listener))
    for owner in (utils.clip_grad, utils):
        yield Patch(owner, "clip_grad_value_", partial(_clipped_by_value, listener))


def _measured(listener: Listener, total_norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def heard(
        tensors: Any,
        norm_type: float = 2.0,
        error_if_nonfinite: bool = False,
        foreach: bool | None = None,
    ) -> Tensor:
        gradients = [tensors] if isinstance(tensors, Tensor) else list(tensors)
        known = None
        if norm_type == 2.0 and foreach is not False:
            known = listener.gradients_measured(gradients)
        if known is None or (error_if_nonfinite and not bool(torch.isfinite(known))):
            return total_norm(gradients, norm_type, error_if_nonfinite, foreach)
        return known

    return heard


def _clipped(listener: Listener, clip: Callable[..., None]) -> Callable[..., None]:
    def heard(
        parameters: Any, max_norm: float, total_norm: Tensor, foreach: bool | None = None
    ) -> None:
        listener.gradients_clipped(float(max_norm))
        clip(parameters, max_norm, total_norm, foreach)

    return heard


def _clipped_by_value(listener: Listener, clip: Callable[..., None]) -> Callable[..., None]:
    def heard(parameters: Any, *args: Any, **kwargs: Any) -> None:
        given = [parameters] if isinstance(parameters, Tensor) else list(parameters)
        gradients = [one.grad for one in given if one.grad is not None]
        listener.gradients_measured(gradients)
        clip(given, *args, **kwargs)
        listener.values_clipped(gradients)

    return heard


def _scaling(listener: Listener) -> Iterator[Patch]:
    scaler = torch.amp.GradScaler
    yield Patch(scaler, "scale", partial(_scaled, listener))
    yield Patch(scaler, "unscale_", partial(_unscaled, listener))
    yield Patch(scaler, "step", partial(_stepped, listener))


def _scaled(listener: Listener, scale: Callable[..., Any]) -> Callable[..., Any]:
    def heard(self: torch.amp.GradScaler, outputs: Any) -> Any:  # as it is given
        found = scale(self, outputs)
        if isinstance(outputs, Tensor) and found is not outputs:
            listener.loss_scaled(outputs, found)
        return found

    return heard


def _unscaled(listener: Listener, unscale: Callable[..., None]) -> Callable[..., None]:
    def heard(self: torch.amp.GradScaler, optimizer: Optimizer) -> None:
        unscale(self, optimizer)
        listener.gradients_unscaled()

    return heard


def _stepped(listener: Listener, step: Callable[..., Any]) -> Callable[..., Any]:
    def heard(self: torch.amp.GradScaler, optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
        if not self.is_enabled():
            return step(self, optimizer, *args, **kwargs)
        listener.scaler_steps(self, optimizer)
        found = step(self, optimizer, *args, **kwargs)
        listener.scaler_stepped(optimizer)
        return found

    return heard


def _compiling(listener: Listener) -> Iterator[Patch]:
    def around(compiler: Callable[..., Any]) -> Callable[..., Any]:
        def heard(model: Any = None, *args: Any, **kwargs: Any) -> Any:  # what torch makes of it
            listener.compiled()
            return compiler(model, *args, **kwargs)

        return heard

    yield Patch(torch, "compile", around)


def _before(listener: Listener) -> Callable[..., Arguments | None]:
    def before_step(
        optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Arguments | None:
        return listener.step_begins(optimizer, (args, kwargs))

    return before_step


def _after(listener: Listener) -> Callable[..., None]:
    def after_step(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        listener.step_ended(optimizer)

    return after_step
