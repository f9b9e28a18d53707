"""Gradients past what has none: rounding, detach, and no_grad within the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from steadygrad.remedies._pass import first_loss
from steadygrad.remedies.instead import Instead
from steadygrad.remedies.remedy import Change, Scene, Unfit, remedy

Function = Callable[..., Any]
STEPS: tuple[Function, ...] = (
    *(torch.round, Tensor.round, torch.sign, Tensor.sign, torch.floor, Tensor.floor),
    *(torch.ceil, Tensor.ceil, torch.trunc, Tensor.trunc, torch.heaviside, Tensor.heaviside),
)
DETACHING: tuple[Function, ...] = (Tensor.detach,)


@remedy("straight-through", "wiring", cures=("G501",), size=2)
def straight_through(scene: Scene) -> Change:
    """Pass the gradient through round, sign, floor, and ceil as if they were the identity.

    Their slope is zero wherever it is defined, so that nothing before them is trained.

    **When it fails.** The gradient is that of another function: large steps of a rounding make it
    a poor guide.

    **Reference.** Bengio 2013 (arXiv 1308.3432), section 4, the straight-through estimator.
    """
    met: list[Function] = []

    def standing_in(function: Function) -> Function:
        def called(x: Tensor, *args: Any, **more: Any) -> Any:
            if not (x.requires_grad and x.is_floating_point()):
                return function(x, *args, **more)
            met.append(function)
            return x + (function(x, *args, **more) - x).detach()

        return called

    functions = {one: standing_in(one) for one in STEPS}
    with Instead(functions):
        first_loss(scene)
    if not met:
        raise Unfit("Nothing in the first batch's loss rounds what has a gradient.")
    patch = f"x = x + (x.{met[0].__name__}() - x).detach()"
    return Change(patch, functions=functions, imitates=True)


@remedy("keep-the-graph", "wiring", cures=("G501",), size=2)
def keep_the_graph(scene: Scene) -> Change:
    """Let the gradient through where the model detaches a tensor or calls a part under no_grad.

    **When it fails.** The cut is meant: a teacher, a target, a stop-gradient as in BYOL or VQ-VAE,
    whose loss is another one without it.

    **Reference.** torch's notes on autograd, "Locally disabling gradient computation" (Paszke 2019,
    section 4.3).
    """
    graph = _Graph(scene.model)
    with Instead(graph.functions):
        first_loss(scene)
    if not graph.cuts:
        graph.leave()
        raise Unfit("The model's forward pass neither detaches nor disables gradients.")
    patch = "".join(f"# in the forward pass: leave out {one}\n" for one in sorted(graph.cuts))
    return Change(patch.rstrip(), functions=graph.functions, imitates=True)


class _Graph:
    """Undoes what cuts the graph while the model runs, once its own forward pass has begun."""

    def __init__(self, model: nn.Module) -> None:
        self.cuts: set[str] = set()
        self._depth = 0
        self._before: list[bool] = []
        self._handles = [model.register_forward_pre_hook(self._enter)]
        self._handles += [model.register_forward_hook(self._exit, always_call=True)]
        for one in model.modules():
            if one is not model and not any(True for _ in one.children()):
                self._handles += [one.register_forward_pre_hook(self._enable)]
                self._handles += [one.register_forward_hook(self._restore, always_call=True)]
        self.functions: dict[Function, Function] = {one: self._kept(one) for one in DETACHING}

    def leave(self) -> None:
        """Take the hooks away."""
        for one in self._handles:
            one.remove()

    def _enter(self, _module: nn.Module, _args: Any) -> None:
        self._depth += torch.is_grad_enabled()

    def _exit(self, _module: nn.Module, _args: Any, _out: Any) -> None:
        self._depth = max(0, self._depth - 1)

    def _enable(self, module: nn.Module, _args: Any) -> None:
        enabled = torch.is_grad_enabled()
        self._before.append(enabled)
        trained = any(one.requires_grad for one in module.parameters())
        if self._depth and not enabled and (trained or not any(True for _ in module.parameters())):
            self.cuts.add("torch.no_grad()")
            torch.set_grad_enabled(True)

    def _restore(self, _module: nn.Module, _args: Any, _out: Any) -> None:
        if self._before:
            torch.set_grad_enabled(self._before.pop())

    def _kept(self, function: Function) -> Function:
        def called(x: Tensor) -> Any:
            if self._depth and x.requires_grad and torch.is_grad_enabled():
                self.cuts.add(".detach()")
                return x.view_as(x)
            return function(x)

        return called
