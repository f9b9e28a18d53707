"""What can't be guarded, and why: one sentence each."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from torch.optim import Optimizer

from steadygrad.guards.policy import Policy

MANY_EVALUATIONS = ("LBFGS",)
MARK = "_steadygrad_attachment"  # a policy's attribute: who holds it


@runtime_checkable
class Guarding(Protocol):
    """What holds policies: the attachment to an optimizer."""

    policies: tuple[Policy, ...]
    active: bool  # whether its hooks are still there


def refuse(optimizer: object, policies: Sequence[object]) -> Optimizer:
    """Return the optimizer whose step is run, or raise what keeps it from being guarded."""
    real = unwrapped(optimizer)
    if not isinstance(real, Optimizer):
        raise TypeError(
            f"guard() expected a torch optimizer, got {type(optimizer).__name__}: "
            "give it the optimizer whose step() the loop calls"
        )
    name = type(real).__name__
    if name in MANY_EVALUATIONS:
        raise ValueError(
            f"guard() can't stand before a step of {name}, which evaluates the loss many times in "
            "one: clip inside its closure"
        )
    if not any(group["params"] for group in real.param_groups):
        raise ValueError(f"guard() expected an optimizer with parameters, got {name} without any")
    _refuse_groups(name, real.param_groups)
    if policies_of(real):
        raise ValueError(
            f"this {name} is guarded already: give all policies to one guard(), or call "
            "handle.remove() on the first"
        )
    _refuse_policies(policies)
    return real


def unwrapped(optimizer: object) -> object:
    """The torch optimizer inside Accelerate's wrapper and its like, which never calls hooks."""
    inner = getattr(optimizer, "optimizer", None)
    return unwrapped(inner) if isinstance(inner, Optimizer) else optimizer


def _refuse_groups(name: str, groups: Sequence[dict[str, Any]]) -> None:
    if any(group.get("differentiable") for group in groups):
        raise ValueError(
            f"guard() can't change gradients of {name}(differentiable=True) in place: "
            "clip them in the graph, with torch.where"
        )
    if any(group.get("capturable") and not group.get("fused") for group in groups):
        raise ValueError(
            f"guard() can't skip a step of {name}(capturable=True), whose captured graph is "
            "replayed without hooks: use fused=True"
        )


def _refuse_policies(policies: Sequence[object]) -> None:
    for policy in policies:
        if isinstance(policy, type) or not isinstance(policy, Policy):
            raise TypeError(
                f"guard() expected policies such as sg.clip_norm(1.0), got {_shown(policy)}"
            )
        owner = attachment_of(policy)
        if owner is not None and owner.active:
            raise ValueError(
                f"{policy.name} guards another optimizer, or one that has been replaced: make a "
                "new policy, or call handle.remove() on the old guard"
            )
    if len({id(one) for one in policies}) < len(policies):
        raise ValueError("guard() got the same policy object twice: make one for each place")
    names = [one.name for one in policies if isinstance(one, Policy)]
    if len(set(names)) < len(names):
        twice = next(one for one in names if names.count(one) > 1)
        raise ValueError(
            f"guard() got two policies named {twice}: give one another name, {twice}(..., name=...)"
        )


def _shown(policy: object) -> str:
    if isinstance(policy, type):
        return f"the class {policy.__name__}: call it: {policy.__name__}(...)"
    return f"{policy!r}" + (": unpack it with *" if isinstance(policy, (list, tuple)) else "")


def mark(policies: Sequence[Policy], attachment: Guarding) -> None:
    """Note on the policies who holds them; one with slots has no room, and is trusted."""
    for policy in policies:
        if isinstance(getattr(policy, "__dict__", None), dict):
            vars(policy)[MARK] = weakref.ref(attachment)


def attachment_of(policy: Policy) -> Guarding | None:
    """Who holds a policy, if that is still alive."""
    held = getattr(policy, "__dict__", {}).get(MARK)
    return None if held is None else held()


def policies_of(optimizer: Optimizer) -> tuple[Policy, ...]:
    """The policies of the guard on an optimizer; none without one."""
    owners = owners_of(optimizer)
    return next((one.policies for one in owners if isinstance(one, Guarding)), ())


def owners_of(optimizer: Optimizer) -> list[object]:
    """The objects whose methods are called before a step of an optimizer."""
    hooks = vars(optimizer).get("_optimizer_step_pre_hooks", {})
    return [getattr(hook, "__self__", None) for hook in hooks.values()]
