"""Other optimizers in the place of the present one, whose object stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from steadygrad.remedies.remedy import Change, Scene, Unfit, remedy

Groups = list[dict[str, Any]]  # as torch has them
Make = Callable[[Groups], Optimizer]


@remedy("adam", "optimizer", cures=("G402", "G411", "G102", "G602"), size=2)
def adam(scene: Scene) -> Change:
    """Step with Adam at a learning rate of 1e-3 instead; groups keep the ratios of theirs.

    Each parameter moves by about its learning rate, however small its gradient: layers that a
    vanishing gradient leaves behind move with the others.

    **When it fails.** The direction of a gradient that has drowned in rounding is noise. Without
    warm-up the first steps are the largest.

    **Reference.** Kingma & Ba 2015, algorithm 1; 1e-3 is their default.
    """
    return _instead(scene, "Adam", 1e-3, {})


@remedy("adamw", "optimizer", cures=("G402", "G411", "G410", "G102"), size=2)
def adamw(scene: Scene) -> Change:
    """Step with AdamW at a learning rate of 1e-3 instead; groups keep the ratios of theirs.

    Decay acts on the weights alone, not through the gradient's statistics.

    **When it fails.** As Adam does; and a decay that was chosen for another optimizer, which is
    kept, acts differently here.

    **Reference.** Loshchilov & Hutter 2019, algorithm 2.
    """
    return _instead(scene, "AdamW", 1e-3, {})


@remedy("rmsprop", "optimizer", cures=("G402", "G411", "G102"), size=2)
def rmsprop(scene: Scene) -> Change:
    """Step with RMSprop at a learning rate of 1e-3 instead; groups keep the ratios of theirs.

    **When it fails.** The first step is ten times the learning rate, as its average begins at zero
    and is not corrected.

    **Reference.** Tieleman & Hinton 2012, lecture 6.5.
    """
    return _instead(scene, "RMSprop", 1e-3, {})


@remedy("sgd-momentum", "optimizer", cures=("G402", "G401", "G412"), size=2)
def sgd_momentum(scene: Scene) -> Change:
    """Step with SGD and momentum 0.9 instead, at 0.01, or at the present SGD's learning rate.

    **When it fails.** Momentum makes steps ten times as large in a constant direction: a learning
    rate that was at its limit is above it. Transformers learn badly with it.

    **Reference.** Sutskever 2013, section 2; Polyak 1964.
    """
    groups = scene.optimizer.param_groups
    if any(group.get("momentum") for group in groups):
        raise Unfit("The optimizer has momentum already.")
    plain = type(scene.optimizer) is torch.optim.SGD
    return _instead(scene, "SGD", _highest(groups) if plain else 0.01, {"momentum": 0.9})


def _instead(scene: Scene, kind: str, lr: float, settings: dict[str, float]) -> Change:
    if type(scene.optimizer).__name__ == "LBFGS":
        raise Unfit("LBFGS computes the gradients within its step, where no other can stand in.")
    if type(scene.optimizer).__name__ == kind and not settings:
        raise Unfit(f"The optimizer is {kind} already.")
    if not all(isinstance(group.get("lr"), (float, int, Tensor)) for group in _groups(scene)):
        raise Unfit("The optimizer has groups without a learning rate.")
    if kind != "SGD" and any(bool(vars(one).get("sparse")) for one in scene.model.modules()):
        raise Unfit(f"{kind} can't step the sparse gradients of an embedding of this model.")
    substitute = Substitute(scene.optimizer, getattr(torch.optim, kind), lr, settings)
    return Change(
        _patch(scene, kind, lr, settings), before=substitute.before, after=substitute.after
    )


class Substitute:
    """An optimizer that steps another's parameters, while that other sees no gradient."""

    def __init__(
        self, present: Optimizer, kind: type[Optimizer], lr: float, settings: dict[str, float]
    ) -> None:
        self._highest, self._lr = _highest(present.param_groups), lr
        self._decays = _decay(present.param_groups)
        groups = [self._group(group) for group in present.param_groups]
        make: Callable[..., Optimizer] = kind
        self.optimizer = make(groups, lr=lr, **settings)
        self._held: list[tuple[Tensor, Tensor]] = []

    def before(self, present: Optimizer, _: int) -> None:
        """Make the step, and take the gradients out of the present optimizer's sight."""
        self._follow(present)
        self.optimizer.step()
        parameters = (one for group in present.param_groups for one in group["params"])
        self._held = [(one, one.grad) for one in parameters if one.grad is not None]
        for one, _grad in self._held:
            one.grad = None

    def after(self, _present: Optimizer, _: int) -> None:
        """Put the gradients back."""
        for one, grad in self._held:
            one.grad = grad
        self._held = []

    def _follow(self, present: Optimizer) -> None:
        """Take over what has become of the groups: their learning rates, and new parameters."""
        mine = self.optimizer.param_groups
        for group in present.param_groups[len(mine) :]:
            self.optimizer.add_param_group(self._group(group))
        for own, group in zip(mine, present.param_groups, strict=True):
            own["lr"] = self._scaled(group["lr"])
            own["params"] = group["params"]

    def _group(self, group: dict[str, Any]) -> dict[str, Any]:
        mine = {"params": list(group["params"]), "lr": self._scaled(_reference(group))}
        return mine | ({"weight_decay": group["weight_decay"]} if self._decays else {})

    def _scaled(self, lr: float | Tensor) -> float:
        return self._lr * (float(lr) / self._highest)


def _groups(scene: Scene) -> Groups:
    return scene.optimizer.param_groups


def _reference(group: dict[str, Any]) -> float:
    """The learning rate that a scheduler departs from; without one, the present one."""
    return float(group.get("initial_lr", group["lr"]))


def _highest(groups: Groups) -> float:
    return max((_reference(group) for group in groups), default=0.0) or 1.0


def _decay(groups: Groups) -> bool:
    """Whether any weights decay, all having the setting; else the substitute's default holds."""
    return all("weight_decay" in group for group in groups) and any(
        group["weight_decay"] for group in groups
    )


def _patch(scene: Scene, kind: str, lr: float, settings: dict[str, float]) -> str:
    groups = _groups(scene)
    more = "".join(f", {key}={value:g}" for key, value in settings.items())
    if len(groups) > 1:
        kept = '"params": group["params"]'
        kept += ', "weight_decay": group["weight_decay"]' if _decay(groups) else ""
        return (
            f"groups = [\n    {{{kept}, \"lr\": {lr:g} * (group['lr'] / {_highest(groups)!r})}}\n"
            "    for group in optimizer.param_groups\n]\n"
            f"optimizer = torch.optim.{kind}(groups, lr={lr:g}{more})"
        )
    more += f", weight_decay={groups[0]['weight_decay']:g}" if _decay(groups) else ""
    whole = [id(p) for p in scene.model.parameters()] == [id(p) for p in groups[0]["params"]]
    held = "model.parameters()" if whole else 'optimizer.param_groups[0]["params"]'
    return f"optimizer = torch.optim.{kind}({held}, lr={lr:g}{more})"
