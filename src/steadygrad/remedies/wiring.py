"""Parameters that are found, held, trained, and zeroed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.optim import Optimizer

from steadygrad.remedies._patch import carry_out, listed
from steadygrad.remedies.remedy import Change, Scene, Unfit, remedy

ADD = """\
held = {id(one) for group in optimizer.param_groups for one in group["params"]}
missing = [one for one in model.parameters() if one.requires_grad and id(one) not in held]
optimizer.param_groups[0]["params"] += missing"""
"""A group of their own would be left out by schedulers that exist, or make them raise."""


@remedy("zero-before-backward", "wiring", cures=("G404",), size=1)
def zero_before_backward(scene: Scene) -> Change:
    """Forget all gradients after each step, so that each backward pass begins from nothing.

    **When it fails.** Gradients that are gathered on purpose, over several losses with a step each,
    are lost.

    **Reference.** torch's documentation of Optimizer.zero_grad: backward adds to what is there
    (Paszke 2019, section 4.3).
    """
    model = scene.model

    def after(optimizer: Optimizer, _: int) -> None:
        optimizer.zero_grad()
        model.zero_grad()

    patch = "optimizer.zero_grad()\nloss.backward()\noptimizer.step()  # in this order"
    return Change(patch, after=after, imitates=True)


@remedy("rebuild-optimizer", "wiring", cures=("G502", "G203"), size=1)
def rebuild_optimizer(scene: Scene) -> Change:
    """Give the optimizer the trainable parameters of the model that it does not hold.

    They join its first group, with its learning rate.

    **When it fails.** Parts that are left out on purpose, or that another optimizer steps, are then
    trained too. What it holds of another model stays.

    **Reference.** torch's documentation of torch.optim: optimizers are to be built after the model
    is complete (Paszke 2019, section 4.3).
    """
    held = {id(one) for group in scene.optimizer.param_groups for one in group["params"]}
    if all(id(one) in held for one in scene.model.parameters() if one.requires_grad):
        raise Unfit("The optimizer holds all trainable parameters of the model.")
    carry_out(scene, ADD)
    return Change(ADD)


@remedy("register", "wiring", cures=("G501", "G502"), size=2)
def register(scene: Scene) -> Change:
    """Put plain lists and dicts of modules into nn.ModuleList and nn.ModuleDict.

    torch finds the parameters of modules that stand in attributes, not in lists. They join the
    optimizer's first group.

    **When it fails.** Modules are in lists on purpose, as a frozen teacher that is not to be saved.
    Tuples, and lists within lists, are left.

    **Reference.** torch's documentation of nn.ModuleList (Paszke 2019, section 4.1).
    """
    lines = [line for name, one in _hidden(scene.model) for line in _registered(name, one)]
    if not lines:
        raise Unfit("No list or dict of this model holds modules that torch does not find.")
    patch = "\n".join([*lines, ADD])
    carry_out(scene, patch)
    return Change(patch)


@remedy("train-mode", "wiring", cures=("G506",), size=1)
def train_mode(scene: Scene) -> Change:
    """Put the model into training mode: its batch norms use the batch, its dropout drops.

    **When it fails.** Norms are frozen on purpose, with the statistics of a pretraining. The
    script may call `model.eval()` again later.

    **Reference.** Ioffe 2015, algorithm 1; torch's documentation of `Module.train`.
    """
    if all(one.training for one in scene.model.modules()):
        raise Unfit("The model is in training mode already.")
    patch = "model.train()"
    carry_out(scene, patch)
    return Change(patch)


@remedy("follow-requires-grad", "wiring", cures=("G501",), size=1)
def follow_requires_grad(scene: Scene) -> Change:
    """Let frozen parameters be trained: those the finding points at, or all.

    They join the optimizer's first group where it does not hold them.

    **When it fails.** Freezing is meant, as for a pretrained backbone or quantised weights. A path
    that is cut by detach or no_grad stays cut.

    **Reference.** torch's notes on autograd, "Locally disabling gradient computation" (Paszke
    2019, section 4.3).
    """
    frozen = [
        name
        for name, one in scene.model.named_parameters()
        if not one.requires_grad and one.is_floating_point()
    ]
    chosen = [name for name in frozen if any(_at(name, place) for place in scene.where)]
    if not scene.where:
        chosen = frozen
    if not chosen:
        raise Unfit("No parameter of this model is frozen where the finding points.")
    patch = (
        f"for name in {listed(chosen)}:\n    model.get_parameter(name).requires_grad_(True)\n{ADD}"
    )
    carry_out(scene, patch)
    return Change(patch)


def _hidden(model: nn.Module) -> Iterator[tuple[str, list[nn.Module] | dict[str, nn.Module]]]:
    """Attributes by path that hold modules with parameters of which the model knows nothing."""
    known = {id(one) for one in model.parameters()}
    for prefix, module in model.named_modules():
        for key, value in vars(module).items():
            modules = _modules(value)
            unknown = [p for one in modules for p in one.parameters() if id(p) not in known]
            if unknown and key.isidentifier():
                yield (f"{prefix}.{key}" if prefix else key), value


def _modules(value: Any) -> list[nn.Module]:  # whatever stands in an attribute
    """The modules of a list, or of a dict with names; none where there is anything else in it."""
    if type(value) is dict and all(isinstance(key, str) for key in value):
        value = list(value.values())
    if type(value) is not list or not all(isinstance(one, nn.Module) for one in value):
        return []
    return value


def _registered(name: str, value: list[nn.Module] | dict[str, nn.Module]) -> list[str]:
    kind = "ModuleList" if isinstance(value, list) else "ModuleDict"
    parent, _, child = name.rpartition(".")
    return [
        f"parent = model.get_submodule({parent!r})",
        f"parent.{child} = nn.{kind}(parent.{child})",
    ]


def _at(name: str, place: str) -> bool:
    return name == place or name.startswith(f"{place}.")
