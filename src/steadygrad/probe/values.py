"""Read the initial values: units that can never become different, garbage, clones, idle norms.

Units whose weights are equal compute the same and, where their gradients are equal too, stay the
same. Many healthy networks start so (zero heads, zero gammas, LoRA's B): only steps can tell. Where
the gradient of the first pass does not yet part the units, a copy takes a few of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from steadygrad.probe.gradients import gradients
from steadygrad.probe.subject import UNCOPYABLE, Readings, Subject, replayed
from steadygrad.probe.trace import array, log10_norm
from steadygrad.probe.tree import is_signal, tensors

ROUNDED = 1e-4  # rounding tells equal rows apart in float32; steps that part them exceed 1e-2
STEPS = 3  # a zero gate before a zero branch before a zero head heals one by one


def values(subject: Subject) -> Readings:
    """Read the facts `values` (stuck, copies, garbage), `clones`, and `idle_norms`."""
    named = {name: one for name, one in subject.model.named_parameters() if one.numel()}
    suspects = {
        name: unit_axis(subject.model.get_submodule(name.rpartition(".")[0]))
        for name, one in named.items()
        if one.requires_grad and is_signal(one) and _suspect(subject.model, name, one)
    }
    facts = {
        "stuck": _stuck(subject, named, suspects),
        "copies": [name for name in suspects if named[name].detach().any()],
        "matrices": sum(one.dim() >= 2 and one.requires_grad for one in named.values()),
        "garbage": garbage(named, subject.log_norm),
    }
    idle = [name for name, one in subject.model.named_modules() if _is_idle(one)]
    return Readings(facts={"values": facts, "clones": _clones(named), "idle_norms": idle})


def _is_idle(module: nn.Module) -> bool:
    """Whether a norm divides by statistics that are still those it was made with, 0 and 1."""
    if not isinstance(module, _BatchNorm) or module.training:
        return False
    mean, variance = module.running_mean, module.running_var
    if mean is None or variance is None:
        return False
    return not bool(mean.any()) and bool((variance == 1).all())


# --- Units that stay the same ------------------------------------------------------------------


def unit_axis(module: nn.Module) -> int | None:
    """Axis of a weight along which the units stand; None where the module does not say."""
    if isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        return 1
    if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return 0
    return 1 if type(module).__name__ == "Conv1D" else None  # Hugging Face's transposed Linear


def alike(weight: Tensor, axis: int | None, *, tolerance: float = 1e-6) -> bool:
    """Whether all units of a weight are equal up to rounding; without an axis, all elements."""
    if weight.dim() < 2 or weight.numel() < 2:
        return False
    rows = weight.detach().reshape(-1, 1) if axis is None else weight.detach().transpose(0, axis)
    if rows.shape[0] < 2 or _differ(rows[0], rows[1], tolerance):
        return False
    peak = float(rows.abs().max())
    return float((rows - rows[:1]).abs().max()) <= tolerance * peak


def _differ(one: Tensor, other: Tensor, tolerance: float) -> bool:
    """Whether two units already show that not all are equal."""
    a, b = array(one), array(other)
    peak = max(np.abs(a).max(), np.abs(b).max())
    return bool(np.abs(a - b).max() > 2 * tolerance * peak)


def _stuck(
    subject: Subject, named: dict[str, nn.Parameter], suspects: dict[str, int | None]
) -> list[dict[str, Any]]:
    """Suspects whose units get equal gradients, and are equal after some steps too."""
    suspects = _not_parted(subject, suspects)
    if not suspects:
        return []
    stepped = _stepped(subject, suspects)
    return [
        {"name": name, "zero": not bool(named[name].detach().any())}
        for name, axis in suspects.items()
        if name in stepped and alike(stepped[name], axis, tolerance=ROUNDED)
    ]


def _suspect(model: nn.Module, name: str, one: Tensor) -> bool:
    return alike(one, unit_axis(model.get_submodule(name.rpartition(".")[0])))


def _not_parted(subject: Subject, suspects: dict[str, int | None]) -> dict[str, int | None]:
    """Suspects whose units get equal gradients in the first pass; unused ones are left out."""
    roots = _roots(subject)
    if not suspects or not roots:
        return {}
    parameters = [subject.model.get_parameter(name) for name in suspects]
    noise = [torch.ones_like(one) if one.numel() == 1 else subject.noise(one) for one in roots]
    grads = gradients(roots, parameters, noise)
    return {
        name: axis
        for (name, axis), grad in zip(suspects.items(), grads, strict=True)
        if grad is not None
        and torch.isfinite(_dense(grad)).all()
        and alike(_dense(grad), axis, tolerance=ROUNDED)
    }


def _roots(subject: Subject) -> list[Tensor]:
    if subject.loss_value is not None:
        return [subject.loss_value] if subject.loss_value.requires_grad else []
    return subject.outputs


def _dense(grad: Tensor) -> Tensor:
    return grad.to_dense() if grad.layout is not torch.strided else grad


def _stepped(subject: Subject, suspects: dict[str, int | None]) -> dict[str, Tensor]:
    """Weights of a copy after some steps; {} where the suspects do not matter to the outcome."""
    try:
        model, _ = subject.twin()
    except UNCOPYABLE:
        return {}
    wanted = [one for one in model.parameters() if one.requires_grad and is_signal(one)]
    for _ in range(STEPS):
        grads = torch.autograd.grad(_objective(subject, model), wanted, allow_unused=True)
        _descend(wanted, grads)
    stepped = {name: model.get_parameter(name) for name in suspects}
    stuck = {
        name: one for name, one in stepped.items() if alike(one, suspects[name], tolerance=ROUNDED)
    }
    kept = {name: one.detach().clone() for name, one in stuck.items()}
    return kept if stuck and _matters(subject, model, stuck.values()) else {}


def _objective(subject: Subject, model: nn.Module) -> Tensor:
    """The loss, or else a random projection of the outputs that a step can change."""
    if subject.loss is not None:
        return subject.loss_again(model)
    outputs = [one for one in tensors(subject.again(model)) if one.requires_grad and is_signal(one)]
    return torch.stack([(one * subject.noise(one)).mean() for one in outputs]).sum()


def _descend(wanted: Iterable[Tensor], grads: Iterable[Tensor | None]) -> None:
    """Move every weight by 3 % of its RMS, or 0.003 where that is more, down its gradient."""
    with torch.no_grad():
        for one, grad in zip(wanted, grads, strict=True):
            if grad is None:
                continue
            grad = _dense(grad)
            size, scale = float(grad.norm()), float(one.norm()) / one.numel() ** 0.5
            if size > 0 and size < float("inf"):
                one.sub_(grad / size * (grad.numel() ** 0.5 * max(0.03 * scale, 0.003)))


def _matters(subject: Subject, model: nn.Module, stuck: Iterable[Tensor]) -> bool:
    """Whether the outcome changes when the stuck weights are filled with noise."""
    with torch.no_grad():
        before = _objective_value(subject, model)
        for one in stuck:
            one.add_(subject.noise(one) * (0.1 + float(one.abs().mean())))
        return not torch.equal(before, _objective_value(subject, model))


def _objective_value(subject: Subject, model: nn.Module) -> Tensor:
    with replayed(subject.rng):
        result = (subject.loss or subject.forward)(model)
    return torch.cat([one.detach().double().flatten() for one in tensors(result) if is_signal(one)])


# --- Garbage -----------------------------------------------------------------------------------


def garbage(
    named: dict[str, nn.Parameter],
    log_norm: Callable[[Tensor], float] = lambda one: log10_norm(one.detach()),
    *,
    outlier: float = 1e6,
    largest: float = 1e4,
    tiny: float = 1e-30,
    share: float = 0.01,
) -> list[str]:
    """Names of parameters that look like memory nobody wrote to.

    The largest magnitude is beyond `largest` and `outlier` times the median, or more than `share`
    of the elements are neither zero nor larger than `tiny`; both shares are read from some 1024
    elements. Chosen by us: no initializer draws over six decades, and none draws below 1e-30.
    """
    found = []
    for name, one in named.items():
        if not is_signal(one) or one.numel() < 2:
            continue
        norm = log_norm(one)  # the largest magnitude is no larger, and dearer to find
        size = np.abs(array(sample(one)))
        faint = size.min() < tiny and ((size > 0) & (size < tiny)).mean() > share
        if faint or (math.log10(largest) < norm < math.inf and _outlies(one, outlier, largest)):
            found.append(name)
    return found


def _outlies(one: Tensor, outlier: float, largest: float) -> bool:
    peak = max(abs(float(end)) for end in one.detach().aminmax())
    median = float(sample(one.detach()).abs().float().median())
    return peak > largest and peak > outlier * median


def sample(tensor: Tensor, *, count: int = 1024) -> Tensor:
    """Take about `count` elements, evenly spaced: [elements]."""
    flat = tensor.reshape(-1)
    return flat[:: max(1, flat.numel() // count)]


def compare_builds(first: nn.Module, second: nn.Module) -> list[str]:
    """Names of parameters and buffers that differ between two builds from one seed, bit by bit.

    A name that only one build has differs too.
    """
    one, other = _state(first), _state(second)
    shared = one.keys() & other.keys()
    differs = {name for name in shared if not _identical(one[name], other[name])}
    return [name for name in {**one, **other} if name in differs or name not in shared]


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _identical(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    return torch.allclose(one.detach(), other.detach(), rtol=0, atol=0, equal_nan=True)


# --- Clones ------------------------------------------------------------------------------------


def _clones(named: dict[str, nn.Parameter]) -> list[list[str]]:
    """Groups of trainable, not constant matrices that are equal and yet not one tensor."""
    groups: dict[Any, list[str]] = {}  # keys are fingerprints
    for name, one in named.items():
        if one.requires_grad and one.dim() >= 2 and is_signal(one):
            ends = one.detach().reshape(-1)
            key = (tuple(one.shape), float(ends[0]), float(ends[-1]), float(ends[len(ends) // 2]))
            groups.setdefault(key, []).append(name)
    return [
        names
        for names in groups.values()
        if len(names) > 1
        and not alike(named[names[0]], None)
        and all(torch.equal(named[names[0]], named[name]) for name in names[1:])
    ]
