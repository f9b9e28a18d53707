"""Take the first real step on a copy, and a few more on the same batch: what does the lr do?

Whether a learning rate is too high is not read off a number but tried: the same few steps, from the
same state, on the same batch, under the same random numbers, at this lr and at a fraction of it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from steadygrad.core.record import Site
from steadygrad.probe.dynamo import stepped_without
from steadygrad.probe.sharpness import sharpness
from steadygrad.probe.subject import UNCOPYABLE, Readings, Subject
from steadygrad.probe.tree import Tree, is_signal, tensors

CLOSURES = ("LBFGS",)  # optimizers whose step evaluates the loss many times
STEPS = 20  # of a trial
SLOWEST = 0.5  # seconds a step may take for a trial to be made
HALF = (torch.float16, torch.bfloat16)
Factor = Callable[[int], float]  # number of the step -> what the lr is multiplied by


def update(subject: Subject, *, budget: float = 5.0) -> Readings:
    """Read the facts `update`, `trial`, `sharpness`; update_ratio and moved of weight matrices.

    `budget` is in seconds: a trial whose step takes longer than half a second, or whose arms do not
    fit, is left out. Both are chosen by us.
    """
    reason = _unable(subject)
    if reason:
        return Readings(blind=dict.fromkeys(("update", "trial", "sharpness"), reason))
    try:
        arm = Arm(subject)
        if not arm.steps_something:
            return _all_blind("the optimizer holds no parameter that gets a gradient")
        return _looked(subject, arm, budget)
    except UNCOPYABLE as error:
        return _all_blind(f"a step on a copy failed: {str(error).splitlines()[0]}")


def _all_blind(reason: str) -> Readings:
    return Readings(blind=dict.fromkeys(("update", "trial", "sharpness"), reason))


def _unable(subject: Subject) -> str:
    if subject.loss is None or subject.loss_value is None:
        return "no loss was given"
    if subject.optimizer is None:
        return "no optimizer was given"
    if type(subject.optimizer).__name__ in CLOSURES:
        return f"{type(subject.optimizer).__name__} steps through a closure"
    return "" if subject.loss_value.requires_grad else "the loss has no gradient"


# --- One step, and some of them ----------------------------------------------------------------


class Arm:
    """A copy of model and optimizer in training; every step sees the same batch and randomness."""

    def __init__(self, subject: Subject, *, decays: bool = True) -> None:
        self.subject = subject
        model, optimizer = subject.twin()
        if optimizer is None:
            raise ValueError("expected a subject with an optimizer, got none: give check() one")
        self.model, self.optimizer = model, optimizer
        self.base = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups if not decays else ():
            group["weight_decay"] = 0.0
        self.mine = [one for one in model.parameters() if one.requires_grad]

    @property
    def steps_something(self) -> bool:
        """Whether the optimizer holds any of the model's trainable parameters."""
        stepped = {id(one) for group in self.optimizer.param_groups for one in group["params"]}
        return any(id(one) in stepped for one in self.mine)

    def gradients(self) -> tuple[float, list[Tensor]]:
        """Compute gradients; return the loss and the model's floating outputs."""
        for one in self.mine:
            one.grad = None
        with capture(self.model) as outputs:
            loss = self.subject.loss_again(self.model)
        loss.backward(inputs=self.mine)  # leaves the gradients of a loss function's own weights
        return float(loss.detach()), outputs

    def step(self, factor: float) -> None:
        """Let the optimizer step at its own lr times a factor."""
        for group, lr in zip(self.optimizer.param_groups, self.base, strict=True):
            group["lr"] = lr * factor
        plain_step(self.optimizer)

    def value(self) -> tuple[float, list[Tensor]]:
        """Compute the loss and the outputs without gradients."""
        with torch.no_grad(), capture(self.model) as outputs:
            loss = self.subject.loss_again(self.model)
        return float(loss.detach()), outputs

    def descend(self, steps: int, factor: Factor) -> list[float]:
        """Losses before each step and after the last one; ends early on a broken loss."""
        losses = []
        for number in range(steps):
            loss, _ = self.gradients()
            losses.append(loss)
            if not math.isfinite(loss):
                return losses
            self.step(factor(number))
        return [*losses, self.value()[0]]


def plain_step(optimizer: Optimizer) -> None:
    """Call an optimizer's own step, past what schedulers, hooks, and watchers wrapped around it.

    torch wraps a class's `step` once, to profile and to call hooks, and marks the wrapper `hooked`.
    """
    step: Any = type(optimizer).step
    while getattr(step, "hooked", False) and getattr(step, "__wrapped__", None) is not None:
        step = step.__wrapped__
    stepped_without(step)(optimizer)


@contextmanager
def capture(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the floating outputs of a model's first call inside the block, detached."""
    found: list[Tensor] = []

    def keep(_module: nn.Module, _args: Tree, output: Tree) -> None:
        if not found:
            found.extend(one.detach().clone() for one in tensors(output) if is_signal(one))

    handle = model.register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


# --- What the first step does ------------------------------------------------------------------


def _looked(subject: Subject, arm: Arm, budget: float) -> Readings:
    clock = _clock(subject)
    begin = clock()
    loss, outputs = arm.gradients()
    before = {n: p.detach().clone() for n, p in arm.model.named_parameters() if p.requires_grad}
    finite = all(bool(torch.isfinite(_dense(p.grad)).all()) for p in arm.mine if p.grad is not None)
    arm.step(1.0)
    seconds = clock() - begin
    after, changed = arm.value()
    facts = {
        "loss_before": loss,
        "loss_after": after,
        "relative_change": _relative_change(outputs, changed),
        "grads_finite": finite,
        "nonfinite": _broken(arm, before),
        "half": sorted({str(p.dtype) for p in arm.mine if p.dtype in HALF}),
        "eps": _smallest_eps(arm.optimizer),
        **_settings(subject),
    }
    facts["first_fall"] = _first_fall(arm, before)
    rows, facts["moved"] = _moves(arm, before)
    if facts["half"] and facts["moved"] < 1:
        facts["moved_later"] = _moved_later(arm, before)
    facts["largest_ratio"] = max((row["update_ratio"] for _, row in rows), default=math.nan)
    readings = Readings(rows, {"update": facts})
    _try(subject, readings, Clock(seconds, budget))
    return readings


def _clock(subject: Subject) -> Callable[[], float]:
    """Time of the process, so that a busy machine changes no verdict; with a device, the wall's."""
    on_cpu = all(one.device.type == "cpu" for one in subject.model.parameters())
    return time.process_time if on_cpu else time.perf_counter


def _relative_change(outputs: list[Tensor], changed: list[Tensor]) -> float:
    if not outputs or len(outputs) != len(changed) or outputs[0].shape != changed[0].shape:
        return math.nan
    size = float(outputs[0].double().norm())
    return float((changed[0].double() - outputs[0].double()).norm()) / size if size else math.nan


def _first_fall(arm: Arm, before: dict[str, Tensor]) -> float:
    """What the first step takes off the loss to first order: minus the update times the gradient.

    A difference of two losses would drown in rounding where the lr is small.
    """
    total = 0.0
    for name, one in arm.model.named_parameters():
        if name in before and one.grad is not None:
            move = before[name] - one.detach()
            total += float(torch.real(move * _dense(one.grad).conj()).double().sum())
    return total


def _broken(arm: Arm, before: dict[str, Tensor]) -> list[str]:
    """Parameters that the step, not what came before, made non-finite."""
    return [
        name
        for name, one in arm.model.named_parameters()
        if name in before
        and bool(torch.isfinite(before[name]).all())
        and not bool(torch.isfinite(one).all())
    ]


def _smallest_eps(optimizer: Optimizer) -> float:
    return min((float(g["eps"]) for g in optimizer.param_groups if "eps" in g), default=math.nan)


def _settings(subject: Subject) -> dict[str, Any]:
    groups = subject.optimizer.param_groups if subject.optimizer is not None else []
    return {
        "optimizer": type(subject.optimizer).__name__,
        "lr": max(float(group["lr"]) for group in groups),
        "momentum": max(float(group.get("momentum", 0.0)) for group in groups),
        "attends": any("Attention" in type(one).__name__ for one in subject.model.modules()),
        "decay": max(float(g["lr"]) * float(g.get("weight_decay") or 0.0) for g in groups),
        "warming_up": any(float(g["lr"]) < _aim(g) for g in groups),
    }


def _aim(group: dict[str, Any]) -> float:
    """The lr that an attached schedule leads to; the group's own where there is none."""
    return max(float(group.get(key) or group["lr"]) for key in ("initial_lr", "max_lr"))


def _moves(
    arm: Arm, before: dict[str, Tensor]
) -> tuple[list[tuple[Site, dict[str, float]]], float]:
    """Rows of |dW|/|W| and the share of elements moved; and that share over all that should."""
    rows, moved, wanted = [], 0, 0
    for name, one in arm.model.named_parameters():
        if name not in before or one.grad is None or not one.grad.isfinite().all():
            continue
        change = one.detach() != before[name]
        pushed = _dense(one.grad) != 0
        mine, all_of_it = int((change & pushed).sum()), int(pushed.sum())
        moved, wanted = moved + mine, wanted + all_of_it
        if one.dim() >= 2:
            size = float(before[name].double().norm())
            step = float((one.detach().double() - before[name].double()).norm())
            row = {"update_ratio": step / size if size else math.inf}
            row["moved"] = mine / all_of_it if all_of_it else math.nan
            rows.append((Site(name, "weight", -1, type(one).__name__, 0, tuple(one.shape)), row))
    return rows, moved / wanted if wanted else math.nan


def _moved_later(arm: Arm, before: dict[str, Tensor], *, steps: int = 4) -> float:
    """Share moved after some more steps: summation that carries the rounding needs a few."""
    for _ in range(steps):
        arm.gradients()
        arm.step(1.0)
    return _moves(arm, before)[1]


def _dense(grad: Tensor) -> Tensor:
    return grad.to_dense() if grad.layout is not torch.strided else grad


# --- The trial ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Clock:
    """What a step costs and what may be spent, in seconds."""

    step: float
    budget: float

    @property
    def steps(self) -> int:
        """Steps of an arm of a trial; there are up to four, one of which may be tripled."""
        return min(STEPS, int(self.budget / (4 * max(self.step, 1e-6))))


def _try(subject: Subject, readings: Readings, clock: Clock) -> None:
    """Add the facts `trial` and `sharpness`, or why there is none."""
    facts = readings.facts["update"]
    noise = abs(facts["loss_before"] - _number(subject.loss_value))
    if noise > 0.02 * abs(facts["loss_before"]):
        why = "the loss differs from call to call under the same random numbers"
        readings.blind.update(trial=why, sharpness=why)
        return
    if clock.step > SLOWEST or clock.steps < 5:
        why = f"a step takes {clock.step:.1f} s: a trial would take too long"
        readings.blind.update(trial=why, sharpness=why)
        return
    readings.facts["trial"] = trial(subject, clock.steps, facts)
    _read_sharpness(subject, readings, clock)


def _number(loss: Tensor | None) -> float:
    return math.nan if loss is None else float(loss.detach())


def trial(subject: Subject, steps: int, facts: dict[str, Any]) -> dict[str, Any]:
    """Losses of the arms, by name: `lr`, and where it fails `lr/10`, `lr/100`, `warm-up`.

    The arm at the lr gets twice the steps more when it fails: large steps may find a flatter place
    first (the catapult of Lewkowycz 2020). Where ten thousand steps would neither move a weight nor
    lower the loss by a tenth, another arm takes a power of ten times the lr, so that weights move
    by about 1e-2. Where weight decay takes more than 1 % of a weight per step, an arm goes without,
    and both get the steps of one that fails.
    """
    mine = Arm(subject)
    losses = mine.descend(steps, lambda _: 1.0)
    others = _other_arms(losses, facts, steps)
    decays = _decays(facts)
    if (decays or fails(losses, facts)) and all(map(math.isfinite, losses)):
        losses = losses[:-1] + mine.descend(2 * steps, lambda _: 1.0)
    arms = {"lr": losses}
    if decays:
        arms["no-decay"] = Arm(subject, decays=False).descend(3 * steps, lambda _: 1.0)
    for name, factor in others.items():
        arms[name] = Arm(subject).descend(steps, factor)
    return {"steps": steps, "losses": arms}


def _other_arms(losses: list[float], facts: dict[str, Any], steps: int) -> dict[str, Factor]:
    if fails(losses, facts):
        rise = 0.7 * steps
        return {
            "lr/10": lambda _: 0.1,
            "lr/100": lambda _: 0.01,
            "warm-up": lambda number: min(1.0, (number + 1) / rise),
        }
    if _crawls(facts) and not facts["warming_up"]:
        more = 10.0 ** round(math.log10(1e-2 * (1 - facts["momentum"]) / facts["largest_ratio"]))
        return {f"lr*{more:.0e}": lambda _: more}
    return {}


def _crawls(facts: dict[str, Any], *, least: float = 1e-5) -> bool:
    """Whether neither weights nor loss will move by a tenth in ten thousand steps like the first.

    A momentum of m adds up 1 / (1 - m) of them.
    """
    once = least * (1 - facts["momentum"])
    idle = 0 < facts["largest_ratio"] < once
    return idle and bool(facts["first_fall"] < once * abs(facts["loss_before"]))


def _decays(facts: dict[str, Any], *, share: float = 0.01) -> bool:
    """Whether weight decay alone takes a share of the weights in a step, momentum included."""
    return bool(facts["decay"] > share * (1 - facts["momentum"]))


def fails(losses: list[float], facts: dict[str, Any]) -> bool:
    """Whether a loss rose, or hardly fell although the first step or a leap changed a lot."""
    return rises(losses) or (stays(losses) and (facts["relative_change"] > 1 or leaps(losses)))


def rises(losses: list[float], *, least: float = 0.01) -> bool:
    """Whether a loss ends broken, or above where it began by a share of it."""
    if not all(map(math.isfinite, losses)):
        return True
    return losses[-1] - losses[0] > least * abs(losses[0])


def stays(losses: list[float], *, least: float = 0.3) -> bool:
    """Whether a loss has not fallen by a share of where it began.

    The share is generous: detectors compare the arms, and know what a constant prediction costs.
    """
    return losses[0] - losses[-1] < least * abs(losses[0])


def leaps(losses: list[float], *, times: float = 3.0) -> bool:
    """Whether a loss was in between at several times where it began."""
    return max(losses) - losses[0] > (times - 1) * abs(losses[0])


def _read_sharpness(subject: Subject, readings: Readings, clock: Clock) -> None:
    facts = readings.facts["update"]
    if facts["optimizer"] != "SGD":
        readings.blind["sharpness"] = "the limit 2 / lambda_max is for SGD"
    elif 30 * clock.step > clock.budget:
        readings.blind["sharpness"] = f"a step takes {clock.step:.1f} s: it would take too long"
    else:
        found = sharpness(subject)
        if isinstance(found, str):
            readings.blind["sharpness"] = found
        else:
            limit = (2 + 2 * facts["momentum"]) / found if found > 0 else math.inf
            readings.facts["sharpness"] = {"lambda_max": found, "limit": limit, "lr": facts["lr"]}
