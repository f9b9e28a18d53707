"""The largest curvature of the loss: power iteration with Hessian-vector products."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from steadygrad.probe.gradients import gradients
from steadygrad.probe.graph import reachable
from steadygrad.probe.subject import Subject


def sharpness(subject: Subject, *, iterations: int = 12, tolerance: float = 0.01) -> float | str:
    """Estimate lambda_max of the loss in all trainable parameters, on a copy; else say why not.

    Power iteration finds the eigenvalue largest in magnitude, from below. Where an op of the model
    has no second derivative, the reason is returned.
    """
    model, _ = subject.twin()
    parameters = [one for one in model.parameters() if one.requires_grad]
    try:
        loss = subject.loss_again(model)
    except RuntimeError as error:
        return f"no second derivative: {str(error).splitlines()[0]}"
    return curvature(loss, parameters, iterations=iterations, tolerance=tolerance)


def curvature(
    loss: Tensor, parameters: Sequence[Tensor], *, iterations: int = 12, tolerance: float = 0.01
) -> float | str:
    """Estimate lambda_max of a loss whose graph is alive in some parameters; else say why not."""
    try:
        grads = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        if any(_ends(grad) for grad in grads if grad is not None):
            return "no second derivative: an op is differentiable once only"
        curved = [grad is not None and grad.requires_grad for grad in grads]
        parameters = list(itertools.compress(parameters, curved))
        return _power(parameters, list(itertools.compress(grads, curved)), iterations, tolerance)
    except RuntimeError as error:
        return f"no second derivative: {str(error).splitlines()[0]}"


def _ends(grad: Tensor) -> bool:
    """Whether an op below cuts the second derivative; torch passes it by without an error."""
    nodes = [] if grad.grad_fn is None else reachable(grad.grad_fn)
    return any(node.name() == "torch::autograd::Error" for node in nodes)


def _power(
    parameters: Sequence[Tensor], grads: Sequence[Tensor], iterations: int, tolerance: float
) -> float:
    if not parameters:
        return 0.0
    generator = torch.Generator(parameters[0].device).manual_seed(0)
    vector = [
        torch.randn(one.shape, generator=generator, device=one.device, dtype=one.dtype)
        for one in parameters
    ]
    value = 0.0
    for _ in range(iterations):
        size = math.sqrt(_dot(vector, vector))
        if size == 0 or not math.isfinite(size):
            return 0.0
        vector = [one / size for one in vector]
        product = gradients(grads, parameters, vector)
        image = [
            torch.zeros_like(one) if found is None else found.detach()
            for one, found in zip(parameters, product, strict=True)
        ]
        before, value = value, _dot(vector, image)
        vector = image
        if abs(value - before) <= tolerance * abs(value):
            break
    return value


def _dot(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    return float(sum((a.double() * b.double()).sum() for a, b in zip(one, other, strict=True)))
