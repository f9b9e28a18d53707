"""Make a Captured of what was heard while a script ran up to its first step."""

from __future__ import annotations

import inspect
import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from steadygrad.guards.refusals import policies_of
from steadygrad.probe.garbage import Garbage
from steadygrad.probe.tree import Tree
from steadygrad.probe.wrappers import unwrapped
from steadygrad.replay.captured import CannotLook, Captured
from steadygrad.replay.owners import Named, Whole, modules_in, whole
from steadygrad.replay.score import Score, Term, buffers_as_noted, reached, score
from steadygrad.replay.tape import Entry, Tape

EQUAL = 1e-5
"""Relative difference up to which a replayed loss is the script's: chosen by us, for threads that
add in another order; what really differs (another batch, another draw) differs by far more."""


@dataclass(slots=True)
class Heard:
    """What was heard while the script ran: calls, backward passes, optimizers, the loss scale.

    `goes_on` says that the script will train on what it owns: nothing of it may be changed, nor
    its model be run, which may count its calls.
    """

    tape: Tape
    passes: list[list[Term]] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    optimizers: list[weakref.ref[Optimizer]] = field(default_factory=list)
    garbage: Garbage | None = None
    scale: float | None = None
    closure: bool = False
    clipped: bool = False
    goes_on: bool = False


IN_VAIN = "backward() reached no parameter"
UNFOLLOWED = "whose origin could not be followed"


def assemble(heard: Heard, optimizer: Optimizer, visible: Named) -> Captured:
    """Find the model and a loss that can be computed again; where it cannot, say why."""
    why = ""
    if _in_vain(heard, optimizer):
        return _without_loss(heard, optimizer, IN_VAIN)
    if heard.passes:
        terms = chosen(heard.passes)
        why = _lost(terms)
        if not why:
            joined, replayed = _score(terms, optimizer, visible, hold=not heard.goes_on)
            why = "" if heard.goes_on else _difference(replayed, joined.model)
            if not why:
                told = replace(replayed, births=heard.tape.births.told(visible))
                captured = _captured(heard, joined, optimizer, told)
                captured.facts["script"]["bypassed"] = _bypassed(heard, optimizer, told, visible)
                return captured
    return _without_loss(heard, optimizer, why or _nothing_heard(heard))


def _in_vain(heard: Heard, optimizer: Optimizer) -> bool:
    """Whether backward() ran and reached no parameter of the optimizer or the last module."""
    if not (heard.passes or heard.unseen):
        return False
    latest = heard.tape.latest
    called = latest.module.parameters() if latest is not None and latest.module is not None else ()
    stepped = (p for group in optimizer.param_groups for p in group["params"])
    trained = {id(p): p for p in (*stepped, *called)}
    touched = {leaf for terms in heard.passes for term in terms for leaf in term.reached}
    return not (touched & trained.keys() or any(p.grad is not None for p in trained.values()))


def _erased(heard: Heard, optimizer: Optimizer) -> dict[str, Any]:
    """Number of parameters that backward() reached where the step finds no gradient; {} if it does.

    The step is a hook away: what `.grad` holds now is what the optimizer is about to use. `none`
    says that every gradient is None, which no backward pass leaves behind.
    """
    touched = {leaf for terms in heard.passes for term in terms for leaf in term.reached}
    stepped = [p for group in optimizer.param_groups for p in group["params"]]
    mine = [p for p in stepped if id(p) in touched]
    held = [p.grad for p in stepped if p.grad is not None]
    if not mine or any(_has_any(grad) for grad in held):
        return {}
    return {"parameters": len(mine), "none": not held}


def _has_any(grad: Tensor) -> bool:
    """Whether a gradient is not zero; of one in an unusual layout it is taken for granted."""
    if grad.is_sparse:
        return bool(grad._values().any())
    return grad.layout is not torch.strided or bool(grad.any())


def chosen(passes: Sequence[Sequence[Term]]) -> list[Term]:
    """Take the first backward pass, and those after it that reach parameters of their own.

    Passes of gradient accumulation reach the same parameters: one of them is enough.
    """
    terms: list[Term] = []
    known: set[int] = set()
    for one in passes:
        mine = set().union(*(term.reached for term in one))
        if mine - known:
            terms += one
            known |= mine
    return terms


def _score(
    terms: Sequence[Term], optimizer: Optimizer, visible: Named, *, hold: bool
) -> tuple[Whole, Score]:
    first = score(terms, {}, {})
    held = {id(p): p for group in optimizer.param_groups for p in group["params"]}
    leaves = [leaf for entry in first.entries for leaf in _leaves(entry)]
    free = [leaf for leaf in leaves if isinstance(leaf, nn.Parameter) or id(leaf) in held]
    loose = list({id(t): t for t in free}.values()) if hold else []
    joined = whole(first.entries, loose, visible)
    return joined, score(terms, joined.paths, joined.names)


def _leaves(entry: Entry) -> list[Tensor]:
    return [t for t in entry.given() if t.requires_grad and t.grad_fn is None]


def _lost(terms: Sequence[Term]) -> str:
    lost = next((entry.lost for entry in score(terms, {}, {}).entries if entry.lost), "")
    return f"the loss depends on {lost}, {UNFOLLOWED}" if lost else ""


def _difference(replayed: Score, model: nn.Module) -> str:
    """Return why a replay on the user's model is not the script's loss; '' when it is."""
    with buffers_as_noted(replayed.entries), torch.enable_grad():
        try:
            loss = replayed.play(model)
        except Exception as error:
            return f"the loss could not be computed again: {type(error).__name__}: {error}"
    wanted = sum(term.value for term in replayed.terms)
    if not _close(float(loss.detach()), wanted):
        return f"computed again, the loss is {float(loss.detach()):.6g} instead of {wanted:.6g}"
    missing = set().union(*(term.reached for term in replayed.terms)) - reached(loss)
    if missing & set(replayed.names):
        return f"computed again, the loss does not reach {_names(missing, replayed)}"
    return ""


def _close(one: float, other: float) -> bool:
    if not (math.isfinite(one) and math.isfinite(other)):
        return math.isfinite(one) == math.isfinite(other)
    return abs(one - other) <= EQUAL * max(abs(one), abs(other), 1e-30)


def _names(ids: set[int], replayed: Score) -> str:
    return ", ".join(sorted(replayed.names[one] for one in ids if one in replayed.names)[:3])


def _captured(heard: Heard, joined: Whole, optimizer: Optimizer, replayed: Score) -> Captured:
    facts = _facts(heard, joined.model, optimizer)
    touched = set().union(*(term.reached for term in replayed.terms))
    if not heard.goes_on:
        _leave_alone(joined.model, facts["script"]["trained_by_others"], touched)
    return Captured(
        joined.model,
        replayed.play,
        _inputs(replayed.entries, joined),
        optimizer,
        facts,
    )


def _bypassed(heard: Heard, optimizer: Optimizer, loss: Score, visible: Named) -> dict[str, Any]:
    """The network that the optimizer steps where the loss reaches nothing of it, and the detach.

    {} where the loss reaches something of it, or is made of nothing that was detached from it.
    """
    held = _held([optimizer])
    if held & set().union(*(term.reached for term in loss.terms)):
        return {}
    mine = [(n, m) for n, m in modules_in(visible) if _is_stepped(unwrapped(m), held)]
    name = max(mine, key=lambda pair: len(list(pair[1].parameters())), default=("", None))[0]
    given = [t for entry in loss.entries for t in entry.given()]
    cuts = [cut for t in given if (cut := heard.tape.detached(t)) is not None and cut.leaves & held]
    if not name or not cuts:
        return {}
    file, number = cuts[0].line
    return {"network": name, "tensors": len(held), "at": f"{file}:{number}"}


def _is_stepped(module: nn.Module, held: set[int]) -> bool:
    """Whether a module has parameters and an optimizer holds all of them."""
    mine = {id(parameter) for parameter in module.parameters()}
    return bool(mine) and mine <= held


def _inputs(entries: Sequence[Entry], joined: Whole) -> Tree:
    """Arguments of the model's first call where it is called as a whole; None otherwise."""
    first = next((e for e in entries if e.module is joined.model), None)
    return None if first is None or first.links else arguments(first)


def arguments(entry: Entry) -> Tree:
    """Arguments of a call as `check` takes them: a tuple, or a mapping of keyword arguments."""
    if not entry.kwargs or entry.module is None:
        return entry.args
    if not entry.args:
        return entry.kwargs
    bound = inspect.signature(entry.module.forward).bind(*entry.args, **entry.kwargs)
    return dict(bound.arguments)


def _without_loss(heard: Heard, optimizer: Optimizer, why: str) -> Captured:
    latest = heard.tape.latest
    if latest is None or latest.module is None:
        if UNFOLLOWED in why:
            raise CannotLook(
                f"expected a loss of modules and torch functions, got one where {why}, as happens "
                "in a transform of torch.func (vmap, grad) whose parameters come by closure: give "
                "them to the transformed function as arguments, or give check a function that "
                "returns the model and its loss (file.py:build)"
            )
        raise CannotLook(
            "expected the script to call a model before its first optimizer step, but "
            f"{why or 'no module with parameters was called'}"
        )
    facts = _facts(heard, latest.module, optimizer)
    return Captured(latest.module, None, arguments(latest), optimizer, facts, {"loss": why})


def _nothing_heard(heard: Heard) -> str:
    if heard.unseen:
        return heard.unseen[0]
    return "the script stepped its optimizer before any backward()"


def _facts(heard: Heard, model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    left = heard.garbage.left() if heard.garbage is not None else set()
    garbage = [name for name, one in model.named_parameters() if id(one) in left]
    script: dict[str, Any] = {
        "optimizer": type(optimizer).__name__,
        "backward_passes": len(heard.passes),
        "closure": heard.closure,
        "clipped": heard.clipped or any("clip" in one.name for one in policies_of(optimizer)),
        "training": model.training,
        "trained_by_others": _others(heard, model, optimizer),
        "in_vain": _in_vain(heard, optimizer),
        "erased": _erased(heard, optimizer),
    }
    if heard.scale is not None:
        script["loss_scale"] = heard.scale
    return {"script": script, **({"builds": {"filled": garbage}} if garbage else {})}


def _others(heard: Heard, model: nn.Module, optimizer: Optimizer) -> list[str]:
    """Names of the parameters that only other optimizers of the script train."""
    mine = _held([optimizer])
    others = _held([one for ref in heard.optimizers if (one := ref()) is not None])
    return [name for name, p in model.named_parameters() if id(p) in others - mine]


def _held(optimizers: Sequence[Optimizer]) -> set[int]:
    return {id(p) for one in optimizers for group in one.param_groups for p in group["params"]}


def _leave_alone(model: nn.Module, others: Sequence[str], touched: set[int]) -> None:
    """Freeze what another optimizer trains on another loss; the script that owned it has ended."""
    for name, parameter in model.named_parameters():
        if name in others and id(parameter) not in touched:
            parameter.requires_grad_(False)
