"""The contract that every remedy keeps, whoever wrote it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its customary name
from torch.optim import Optimizer

import steadygrad as sg
from steadygrad.detectors import DETECTORS
from steadygrad.detectors.steps import STEPS
from steadygrad.remedies.instead import Instead
from steadygrad.remedies.remedy import Change, Loss, Remedy, Scene, Unfit
from steadygrad.testing.case import Case, generator_at
from steadygrad.testing.contract import NAME

CODES = frozenset(one.code for one in (*DETECTORS, *STEPS))
PAGE = ("**When it fails.**", "**Reference.**")
STEPS_MADE = 5


def check_remedy(remedy: Remedy, make: Callable[[], Case], *, seed: int = 0) -> Change | None:
    """Assert that a remedy keeps the contract on a network; return its change, None where unfit.

    The remedy has a kebab-case name, a page with its source and with when it fails, and cures known
    codes. On the network it raises Unfit with one sentence and has changed nothing; or: two
    applications under one seed do the same; training mode, types, and places stay; the optimizer
    holds all trainable parameters; five steps run with a finite loss; and the patch, run on an
    untouched network under the same seed, leads to the same parameters after these steps. Of a
    patch that only comes to the same, it is asked that it compiles.
    """
    _check_identity(remedy)
    given = _Training(make, seed)
    change = given.change(remedy)
    if change is None:
        _check_same(given, _Training(make, seed), f"{remedy.name} is unfit, yet changed something")
        return None
    fresh, again = _Training(make, seed), _Training(make, seed)
    _check_left(remedy, given, fresh)
    assert again.change(remedy) is not None, f"{remedy.name} is unfit the second time"
    _check_same(given, again, f"{remedy.name} does two things under one seed")
    _check_patch(remedy, change, given, fresh)
    return change


def _check_identity(remedy: Remedy) -> None:
    assert NAME.fullmatch(remedy.name.replace(".", "")), f"{remedy.name!r} is not kebab-case"
    missing = [part for part in PAGE if part not in remedy.explains]
    assert not missing, f"the page of {remedy.name} lacks {missing}"
    source = remedy.explains.partition("**Reference.**")[2]
    assert re.search(r"\b(19|20)\d\d\b", source), f"the reference of {remedy.name} has no year"
    strange = set(remedy.cures) - CODES
    assert remedy.cures, f"{remedy.name} cures nothing"
    assert not strange, f"{remedy.name} cures {strange}, which no detector finds"
    assert remedy.size in (1, 2, 3, 4), f"the size of {remedy.name} is 1 to 4"


class _Training:
    """A network with its optimizer and its loss, begun at a seed."""

    def __init__(self, make: Callable[[], Case], seed: int) -> None:
        with generator_at(seed):
            case = make()
        if case.optimizer is None or case.loss is None:
            raise ValueError("check_remedy() needs a case with an optimizer and a loss")
        self.model, self.loss, self.seed = case.model, case.loss, seed
        self.optimizer: Optimizer = case.optimizer

    def change(self, remedy: Remedy) -> Change | None:
        with generator_at(self.seed):
            state = torch.get_rng_state()
            try:
                return remedy.apply(Scene(self.model, self.optimizer, _seeded(self.loss)))
            except Unfit as unfit:
                _check_sentence(remedy, str(unfit))
                same = torch.equal(state, torch.get_rng_state())
                assert same, f"{remedy.name} is unfit, yet moved the random numbers"
                return None

    def paste(self, patch: str) -> None:
        names: dict[str, Any] = {"model": self.model, "optimizer": self.optimizer, "sg": sg}
        names |= {"torch": torch, "nn": nn, "F": F}
        with generator_at(self.seed):
            exec(compile(patch, "patch", "exec"), names)
        self.model, self.optimizer = names["model"], names["optimizer"]

    def steps(self, change: Change) -> None:
        """Make the steps, with all that a change asks for."""
        with generator_at(self.seed):
            for number in range(STEPS_MADE):
                self._step(change, number)

    def _step(self, change: Change, number: int) -> None:
        with Instead(change.functions):
            loss = self.loss(self.model)
            assert math.isfinite(float(loss.detach())), f"the loss of step {number} is not finite"
            self.optimizer.zero_grad()
            loss.backward()
        if change.before is not None:
            change.before(self.optimizer, number)
        self.optimizer.step()
        if change.after is not None:
            change.after(self.optimizer, number)


def _seeded(loss: Loss) -> Loss:
    """The loss under the same random numbers whenever it is computed."""

    def again(model: nn.Module) -> Tensor:
        with generator_at(1):
            return loss(model)

    return again


def _check_sentence(remedy: Remedy, said: str) -> None:
    one = said[:1].isupper() and said.endswith(".") and "\n" not in said
    assert one, f"{remedy.name} is unfit without a sentence: {said!r}"


def _check_left(remedy: Remedy, changed: _Training, fresh: _Training) -> None:
    """What a remedy must leave as it was, and that the optimizer holds what is trained."""
    before = dict(fresh.model.named_modules())
    modes = {name for name, one in changed.model.named_modules() if one.training}
    wrong = [name for name, one in before.items() if one.training != (name in modes)]
    assert not wrong, f"{remedy.name} changed the mode of {wrong[0]!r}"
    now = dict(changed.model.named_parameters())
    for name, one in fresh.model.named_parameters():
        alike = (one.dtype, one.device, one.requires_grad)
        other = now.get(name)
        assert other is not None, f"{remedy.name} took the parameter {name} away"
        same = (other.dtype, other.device, other.requires_grad) == alike
        assert same, f"{remedy.name} changed the type or place of {name}"
    held = [one for group in changed.optimizer.param_groups for one in group["params"]]
    ids = [id(one) for one in held]
    assert len(ids) == len(set(ids)), f"{remedy.name} put a parameter into the optimizer twice"
    lost = [name for name, one in now.items() if one.requires_grad and id(one) not in set(ids)]
    assert not lost, f"{remedy.name} left {lost} out of the optimizer"


def _check_patch(remedy: Remedy, change: Change, tried: _Training, pasted: _Training) -> None:
    """Make the steps with the change and, where the patch is the same, with the patch."""
    compile(change.patch, f"the patch of {remedy.name}", "exec")
    if change.imitates:
        tried.steps(change)
        return
    pasted.paste(change.patch)
    _check_same(tried, pasted, f"the patch of {remedy.name} makes other parameters")
    tried.steps(change)
    pasted.steps(Change(""))
    _check_same(tried, pasted, f"the patch of {remedy.name} trains other parameters")


def _check_same(one: _Training, other: _Training, what: str) -> None:
    mine, theirs = _tensors(one.model), _tensors(other.model)
    same = len(mine) == len(theirs) and all(
        torch.equal(a, b) for a, b in zip(mine, theirs, strict=True)
    )
    assert same, what


def _tensors(model: nn.Module) -> Sequence[Tensor]:
    return [one.detach() for one in (*model.parameters(), *model.buffers())]
