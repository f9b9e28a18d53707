"""Other learning rates: constant factors, a warm-up, and the largest that is stable."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from steadygrad.core.theory import largest_stable_lr
from steadygrad.probe.sharpness import curvature
from steadygrad.remedies._pass import first_loss
from steadygrad.remedies._patch import rounded
from steadygrad.remedies.remedy import Change, Remedy, Scene, Unfit, remedy

Factor = Callable[[int], float]
"""What the learning rates are multiplied by in a step, from its number."""

LONGEST = 200
"""Steps of a warm-up at most: chosen by us, so that a trial sees what comes of it."""

KNOWN = ("SGD",)
ADAM_LIKE = ("Adam", "AdamW", "NAdam", "RAdam", "RMSprop")
DEFAULT = 1e-3
BELOW = 0.8
"""The share of the largest stable learning rate that is used: 1.6 of the 2 of 2 / lambda_max."""


class Multiplied:
    """Learning rates that are other ones during the step, so that schedules see theirs."""

    def __init__(self, factor: Factor) -> None:
        self._factor = factor
        self._held: list[tuple[dict[str, Any], Any]] = []

    def before(self, optimizer: Optimizer, step: int) -> None:
        """Multiply the learning rates."""
        self.after(optimizer, step)  # a step that raised did not come to its end
        self._held = [(group, group["lr"]) for group in optimizer.param_groups]
        for group, lr in self._held:
            group["lr"] = lr * self._factor(step)

    def after(self, _: Optimizer, _step: int) -> None:
        """Put the learning rates back."""
        for group, lr in self._held:
            group["lr"] = lr
        self._held = []


def _times(factor: float) -> Change:
    held = Multiplied(lambda _: factor)
    patch = f'for group in optimizer.param_groups:\n    group["lr"] *= {factor:g}'
    return Change(patch, before=held.before, after=held.after)


def _check_rates(optimizer: Optimizer) -> None:
    if not all("lr" in group for group in optimizer.param_groups):
        raise Unfit("The optimizer has groups without a learning rate.")


# --- Constant factors ----------------------------------------------------------------------------

LOWER = """Multiply all learning rates by {factor:g}, in every step of whatever schedule there is.

**When it fails.** A rate that is not the cause is only made slower: nothing learns in the time.
Where rates are too high at the start alone, `warm-up` costs less.

**Reference.** Cohen 2021, section 3: above 2 / lambda_max gradient descent leaves a minimum."""

HIGHER = """Multiply all learning rates by {factor:g}, in every step of whatever schedule there is.

**When it fails.** Above 2 / lambda_max training becomes unstable; a network that gets no gradient
for another reason is only shaken.

**Reference.** Smith 2017 (arXiv 1506.01186), section 3.3: rates that are too low cost time."""

TOO_HIGH = ("G401", "G403", "G412", "G108", "G005", "G301")
TOO_LOW = ("G402", "G411", "G405")


def _factor(factor: float, text: str, cures: tuple[str, ...]) -> Remedy:
    def apply(scene: Scene) -> Change:
        _check_rates(scene.optimizer)
        return _times(factor)

    apply.__doc__ = inspect.cleandoc(text.format(factor=factor))
    return remedy(f"lr-x{factor:g}", "step", cures=cures, size=1)(apply)


FACTORS: tuple[Remedy, ...] = (
    _factor(0.1, LOWER, TOO_HIGH),
    _factor(0.01, LOWER, TOO_HIGH),
    _factor(0.3, LOWER, TOO_HIGH),
    _factor(100.0, HIGHER, TOO_LOW),
    _factor(10.0, HIGHER, TOO_LOW),
    _factor(3.0, HIGHER, TOO_LOW),
)


# --- Warm-up -------------------------------------------------------------------------------------


@remedy("warm-up", "step", cures=("G403", "G401", "G412"), size=2)
def warm_up(scene: Scene) -> Change:
    """Let the learning rates rise linearly to what they are over the first steps.

    Over 2 / (1 - beta2) steps where the optimizer has a beta2, as its second moments need that many
    to be known, but at most 200 (chosen by us; 0.999 asks for 2000); else over 200.

    **When it fails.** A rate that is too high for good is only reached later. A schedule that warms
    up already is slowed down again. The patch is for a training without a schedule; another one has
    to be multiplied by it.

    **Reference.** Ma & Yarats 2021, section 5.2: linear warm-up over 2 / (1 - beta2) steps; Goyal
    2017, section 2.2, for SGD.
    """
    _check_rates(scene.optimizer)
    steps = _warm_steps(scene.optimizer)
    held = Multiplied(functools.partial(_risen, steps))
    patch = (
        "warm_up = torch.optim.lr_scheduler.LambdaLR(\n"
        f"    optimizer, lambda step: min(1.0, (step + 1) / {steps})\n"
        ")\n"
        "optimizer.register_step_post_hook(lambda *_: warm_up.step())  # or after optimizer.step()"
    )
    return Change(patch, before=held.before, after=held.after)


def _risen(steps: int, step: int) -> float:
    return min(1.0, (step + 1) / steps)


def _warm_steps(optimizer: Optimizer) -> int:
    betas = [group["betas"][1] for group in optimizer.param_groups if "betas" in group]
    return min([LONGEST, *(round(2 / (1 - float(beta))) for beta in betas if beta < 1)])


# --- The usual one -------------------------------------------------------------------------------


@remedy("default-lr", "step", cures=("G401", "G402", "G405", "G412"), size=1)
def default_lr(scene: Scene) -> Change:
    """Set the learning rate of Adam and its kin to 1e-3; groups keep the ratios of theirs.

    Their step is about the learning rate in every weight, whatever the gradient, so that one rate
    serves many networks.

    **When it fails.** Fine-tuning, and networks of billions of parameters, want less; a scheduler's
    peak is what counts where there is one.

    **Reference.** Kingma & Ba 2015, algorithm 1.
    """
    _check_rates(scene.optimizer)
    highest = max(float(group["lr"]) for group in scene.optimizer.param_groups)
    if type(scene.optimizer).__name__ not in ADAM_LIKE:
        raise Unfit("The default is known for Adam and its kin, not for this optimizer.")
    if not highest or DEFAULT / 3 < highest < 3 * DEFAULT:
        raise Unfit("The learning rate is zero on purpose, or near 1e-3 already.")
    return _times(rounded(DEFAULT / highest, 3))


# --- From the curvature --------------------------------------------------------------------------


@remedy("sharpness-lr", "step", cures=("G401", "G402", "G405", "G403", "G412"), size=1)
def sharpness_lr(scene: Scene) -> Change:
    """Set the learning rate to 0.8 of the largest at which SGD is stable, by the loss's curvature.

    (2 + 2 momentum) / lambda_max, with lambda_max from power iteration on the first batch. All
    groups keep the ratios of their rates. It is not set above 1, or what it was (chosen by us).

    **When it fails.** Curvature changes as training goes on, mostly up; another batch has another.
    Where the network is dead it is flat, and any rate looks stable. Adaptive optimizers follow
    another curvature, that of the preconditioned loss.

    **Reference.** Cohen 2021, section 2; LeCun 1993 for power iteration. See
    `core.theory.largest_stable_lr`.
    """
    groups = scene.optimizer.param_groups
    if type(scene.optimizer).__name__ not in KNOWN:
        raise Unfit("The largest stable rate is known for SGD, not for this optimizer.")
    highest = max(float(group["lr"]) for group in groups)
    found = curvature(first_loss(scene), _trained(scene.model))
    if not isinstance(found, float) or not found > 0 or highest == 0:
        raise Unfit(
            "The largest curvature of the first batch's loss is not known, or not positive."
        )
    momentum = max(float(group.get("momentum", 0.0)) for group in groups)
    wanted = min(BELOW * largest_stable_lr(found, momentum), max(1.0, highest))
    return _times(rounded(wanted / highest, 3))


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [one for one in model.parameters() if one.requires_grad]
