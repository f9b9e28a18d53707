"""Wiring over many steps: what never got a gradient, never moved, or is held by no optimizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from steadygrad.core.finding import Advice, Finding, Severity, detector
from steadygrad.core.record import Record
from steadygrad.detectors.steps.course import course_of
from steadygrad.detectors.steps.moves import is_matrix, owner
from steadygrad.detectors.words import layers

Wiring = Mapping[str, Any]  # the fact `wiring`: JSON-like


@detector("G501", "no-gradient", needs=("wiring",), explains=("G102", "G411"))
def no_gradient(record: Record, *, long: int = 20) -> Iterator[Finding]:
    """Parameters that an optimizer holds and that no step has moved.

    **What it looks at.** Four sets of parameters, from the second step on, since zero residuals,
    zero heads and LoRA's A heal after one. *Without a gradient*: held by an optimizer, asked for a
    gradient, and never given one. That is broken when it is all of them, and a risk when they are
    the first in forward order and their modules ran: then something behind them cuts the path.
    Otherwise it is a note: an unused head, a pooler, a rare expert. *Zero*: the gradient was
    exactly zero in every step, which is broken when it is so for all (though not where the loss
    fell, or is zero as well), and a risk when a weight
    matrix has none in `long` = 20 steps (chosen by us) and the loss does not fall. *Unmoved*: there
    was a gradient, and no element changed in any sampled step, which is a risk when it is so for
    all weights while the lr is not zero. Biases, whose gradient is zero by structure before a norm
    or at an attention's keys, are left out of it. *Frozen* parameters are frozen on purpose, unless
    all are.

    **Why it matters.** These weights stay as they were drawn. The loss falls a little all the same,
    because other layers learn.

    **When it is wrong.** A trunk under `no_grad` on purpose, whose parameters the optimizer was
    given: set `requires_grad_(False)`. Losses that are multiplied by zero give gradients of zero; a
    part whose turn has not come yet looks unused.

    **What to try.** Remove the detach; keep layers in `nn.ModuleList`; with gradient checkpointing
    `use_reentrant=False`; `requires_grad_(False)` for what is not to be trained.

    **References.** huggingface/transformers #26334, #35826 (checkpointing and PEFT);
    pytorch/pytorch #666, #38639 (lists of layers).
    """
    facts = record.facts["wiring"]
    if facts["steps"] < 2:
        return
    held = [site.name for site in record.sites_of("weight")]
    if not held or {*held} <= {*facts["frozen"]}:
        yield from _all_frozen(facts)
        return
    yield from _never(record, _asked(facts, facts["no_gradient"]), held)
    if facts["steps"] >= long:
        yield from _zero(record, _asked(facts, facts["zero"]), held)
        yield from _unmoved(record, facts["unmoved"], held)


def _all_frozen(facts: Wiring) -> Iterator[Finding]:
    if facts["model_parameters"] and len(facts["frozen"]) >= facts["model_parameters"]:
        says = f"none of the {len(facts['frozen'])} parameters requires a gradient: nothing learns."
        yield Finding(Severity.broken, says, ("optimizer",), magnitude=10.0)


def _asked(facts: Wiring, names: Sequence[str]) -> list[str]:
    """Leave out what asks for no gradient."""
    frozen = {*facts.get("frozen", ())}
    return [name for name in names if name not in frozen]


def _never(record: Record, names: Sequence[str], held: Sequence[str]) -> Iterator[Finding]:
    if not names:
        return
    if len(names) >= len(held):
        says = f"no step gave any of {len(held)} parameters a gradient: nothing learns."
        yield Finding(Severity.broken, says, ("optimizer",), _count(names), magnitude=10.0)
        return
    where = tuple(dict.fromkeys(owner(name) for name in names))
    if _leads(record, names):
        yield Finding(
            Severity.risk,
            f"{len(names)} parameters of {layers(where)} never got a gradient, although these "
            "layers ran and are the first: the path is cut behind them.",
            where,
            _count(names),
            confidence="likely",
            try_next=(Advice("keep-the-graph"),),
            magnitude=8.0,
        )
    else:
        yield Finding(
            Severity.note,
            f"{len(names)} parameters of {layers(where)} never got a gradient: unused so far, or "
            "cut off, which `steadygrad check` tells apart.",
            where,
            _count(names),
            confidence="possible",
        )


def _leads(record: Record, names: Sequence[str]) -> bool:
    """Whether these are the first parameters in forward order, and their modules ran."""
    without = {*names}
    sites = [site for site in record.sites_of("weight") if site.depth >= 0]
    mine = [site.depth for site in sites if site.name in without]
    others = [site.depth for site in sites if site.name not in without]
    if not mine or not others or max(mine) > min(others):
        return False
    read = np.isfinite(record.series("rms", "output"))
    ran = {one.name for place, one in enumerate(record.sites_of("output")) if read[:, place].any()}
    return any(_inside(name, ran) for name in names)


def _inside(name: str, ran: set[str]) -> bool:
    return owner(name) in ran or any(one.startswith(f"{owner(name)}.") for one in ran)


def _zero(record: Record, names: Sequence[str], held: Sequence[str]) -> Iterator[Finding]:
    matrices = {site.name for site in record.sites_of("weight") if is_matrix(site)}
    mine = [name for name in names if name in matrices]
    if not mine:
        return
    course, whole = course_of(record), {*mine} == matrices
    where = tuple(dict.fromkeys(owner(name) for name in mine))
    severity = Severity.note
    idle = whole and course.state == "unknown" and bool(np.any(record.series("loss", "step")))
    if course.ill or idle:
        severity = Severity.broken if whole else Severity.risk
    yield Finding(
        severity,
        f"the gradient of {len(mine)} of {len(held)} parameters ({layers(where)}) was exactly zero "
        f"in all {course.steps} steps.",
        where,
        _count(mine),
        confidence="measured" if course.ill or idle else "possible",
        magnitude=7.0,
    )


def _unmoved(record: Record, names: Sequence[str], held: Sequence[str]) -> Iterator[Finding]:
    rates, skipped = record.series("lr", "step"), record.series("skipped", "step")
    idle = not np.any(rates > 0) or (skipped.size and float(np.nanmean(skipped)) > 0.9)
    if names and len(names) >= 0.9 * len(held) and not idle:
        yield Finding(
            Severity.risk,
            f"{len(names)} of {len(held)} parameters got gradients and did not change in any "
            "sampled step, although the lr is not zero.",
            ("optimizer",),
            _count(names),
            ruled_out=("the gradient: it is there",),
            magnitude=6.0,
        )


def _count(names: Sequence[str]) -> dict[str, float | str]:
    return {"parameters": float(len(names)), "first": names[0]}


@detector("G502", "not-in-optimizer", needs=("wiring",), explains=("G411",))
def not_in_optimizer(record: Record) -> Iterator[Finding]:
    """Parameters that get gradients in every step and that no optimizer steps.

    **What it looks at.** Parameters of the model that want a gradient and get one while no
    optimizer holds them, from the second step on. It is a risk when a module has some of its
    parameters held and others not, or when layers are left out that come after stepped ones. When
    all that is left out comes before what is stepped, it is a note: so is a head trained on a
    trunk; and so it is when the order is not known and most of the network is left out.

    **Why it matters.** Gradients are computed and look healthy, and these weights never move.

    Parameters that the loss reaches in the second step, and that no module in sight registers, are
    a risk too; those of a module that nobody steps (a teacher, a loss network) are a note.

    **When it is wrong.** Training a part by omission works; `requires_grad_(False)` for the rest
    says so and saves its backward pass. A second loop may step them later.

    **What to try.** Build the optimizer after the model is complete, or `add_param_group`. An
    exhausted iterator (`filter(...)` used twice) is cured by a list.

    **References.** hyperIQA #32 and HVPNeT #5, found by hand by their users.
    """
    facts = record.facts["wiring"]
    if facts["steps"] >= 2:
        yield from _loose(facts)
    outside = facts["outside"]
    if facts["steps"] < 2 or not outside:
        return
    where = tuple(dict.fromkeys(owner(name) for name in outside))
    held = {owner(site.name) for site in record.sites_of("weight")}
    partly = sorted(held & {*where})
    by_design = not partly and _before_all_held(record, where, held, facts["model_parameters"])
    why = (
        f"{partly[0]} is held in part"
        if partly
        else "they come before all that is stepped"
        if by_design
        else "they lie between or behind layers that are stepped"
    )
    yield Finding(
        Severity.note if by_design else Severity.risk,
        f"{len(outside)} parameters of {layers(where)} get gradients and are held by no optimizer: "
        f"{why}.",
        where,
        _count(outside),
        confidence="possible" if by_design else "likely",
        try_next=(Advice("rebuild-optimizer"),),
        magnitude=3.0,
    )


def _loose(facts: Mapping[str, Any]) -> Iterator[Finding]:
    """Tell of parameters that the loss reaches and neither a model nor an optimizer holds."""
    hidden, elsewhere = facts.get("unregistered") or [], facts.get("elsewhere") or []
    if hidden:
        yield Finding(
            Severity.risk,
            f"the loss reaches {len(hidden)} parameters that no module registers and no optimizer "
            f"holds, the first of shape {hidden[0]}: layers in a plain list are not parts of a "
            "model.",
            ("optimizer",),
            {"parameters": float(len(hidden))},
            confidence="likely",
            try_next=(Advice("register-layers", "self.layers = nn.ModuleList(layers)"),),
            magnitude=4.0,
        )
    if elsewhere:
        yield Finding(
            Severity.note,
            f"the loss reaches {len(elsewhere)} parameters of other modules that no optimizer has "
            "stepped so far: frozen on purpose, or forgotten.",
            ("optimizer",),
            {"parameters": float(len(elsewhere))},
            confidence="possible",
        )


def _before_all_held(record: Record, where: Sequence[str], held: set[str], total: int) -> bool:
    """Whether what is left out comes before all that is held; the larger part, if not known."""
    depth = {site.name: site.depth for site in record.sites_of("output")}
    mine = [depth[name] for name in where if name in depth]
    others = [depth[name] for name in held if name in depth]
    if mine and others:
        return max(mine) < min(others)
    return len(where) > 0.5 * total
