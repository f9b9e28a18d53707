"""Wiring: parameters that the gradient does not reach, and parameters that nobody steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from steadygrad.core.finding import Advice, Finding, Severity, detector
from steadygrad.core.record import Record

Row = Mapping[str, Any]  # one entry of the fact `wiring`: JSON-like

HOW = {
    "detach": "detached from the graph",
    "data": "taken out of the graph by .data",
    "no_grad": "computed under no_grad",
    "numpy": "sent through numpy",
    "tolist": "sent through a list of numbers",
    "tensor": "copied into a new tensor",
}


@detector("G501", "no-gradient", needs=("wiring",), explains=("G101", "G102", "G103", "G104"))
def no_gradient(record: Record, *, large: float = 0.5) -> Iterator[Finding]:
    """Parameters that count in the forward pass but get no gradient.

    **What it looks at.** Autograd's graph from the loss (without one, from the outputs) down to the
    parameters. One that is not reached is looked for in a second forward pass: when the loss still
    depends on it, beyond a detach, `no_grad`, `argmax`, `round`, `.data` or numpy, its path was
    *cut* there, and the line is named; when it does not, it is *unused*. Tensors that are reached
    but that `model.parameters()` does not list (layers in a plain list) are *not registered*.
    Nothing is judged by the size of a gradient: an exact zero that heals (LoRA's B, zero gammas,
    zero heads), a key's bias, a bias before a norm all have a path.

    Under a script, `.grad` is looked at as the optimizer finds it at its first step: where
    backward() reached parameters of the optimizer and none has a gradient that is not zero, though
    the loss does, it was *erased* in between.

    Broken: the loss of a script reaches nothing of the network that the optimizer steps (the
    generator, in a GAN whose judge was given detached samples in the generator's turn),
    no parameter is reached, the gradient is erased, none requires a gradient, one that the
    optimizer steps is cut, or a layer is not registered. Without an optimizer a cut is broken when
    it takes the first layer or `large` = 50 % of the unreached model (chosen by us) inside of the
    model's own code. A cut by `no_grad` is at most a risk: somebody asked for it.

    **Why it matters.** These weights stay as they were drawn. The loss falls a little all the same,
    because other layers learn, so that nothing else tells.

    **When it is wrong.** Unused heads, poolers and rare experts are notes. So are cuts of what the
    optimizer does not hold (a generator in the discriminator's turn), of modules in evaluation
    mode, of a module with a trained twin (an EMA teacher), and of a codebook behind a
    straight-through estimator when no loss was given. A loss that the check was not told about may
    train what looks cut here: give `check` the whole loss.

    **What to try.** Remove the detach, keep layers in `nn.ModuleList` or `nn.ModuleDict`, replace
    argmax and round by softmax or Gumbel-softmax, do in torch what numpy did; `zero_grad()` before
    `backward()`; with PEFT and gradient checkpointing `model.enable_input_require_grads()` or
    `use_reentrant=False`.

    **References.** pytorch/pytorch #666, #38639 (lists of layers); huggingface/transformers #26334,
    #35826 (checkpointing and PEFT); Jang 2017 (Gumbel-softmax).
    """
    if record.facts.get("script", {}).get("in_vain"):
        yield _in_vain()
        return
    facts = record.facts["wiring"]
    bypassed = record.facts.get("script", {}).get("bypassed")
    if bypassed:
        yield _around(bypassed)
        return
    if not facts["parameters"]:
        return
    if not facts["reached"]:
        yield _nothing_reached(facts)
        return
    yield from _erased(record)
    yield from _unregistered(facts["unregistered"])
    yield from _cut(facts, large)
    yield from _idle(facts["unreached"])
    if facts["trainable_share"] < 1e-4:
        yield Finding(
            Severity.note,
            f"only {facts['trainable_share']:.2g} of the model's weights require a gradient.",
            evidence={"trainable_share": facts["trainable_share"]},
        )


def _nothing_reached(facts: Row) -> Finding:
    evidence = {"parameters": facts["parameters"], "trainable": facts["trainable"]}
    if not facts["trainable"]:
        says = f"none of the {facts['parameters']} parameters requires a gradient: nothing learns."
        return Finding(Severity.broken, says, ("optimizer",), evidence)
    origin = "the loss" if facts["has_loss"] else "what the model puts out"
    cuts = [row for row in facts["unreached"] if row["why"] == "cut"]
    how = f": it is {_how(cuts[-1])}" if cuts else ""
    where = (cuts[-1]["module"],) if cuts else ("loss" if facts["has_loss"] else "",)
    says = f"no path leads from {origin} to any parameter{how}."
    tries = _advice(cuts[-1]) if cuts else ()
    return Finding(Severity.broken, says, where, evidence, try_next=tries, magnitude=10.0)


def _unregistered(rows: Sequence[Row]) -> Iterator[Finding]:
    hidden = [row for row in rows if row["hidden"]]
    if hidden:
        active = [row for row in hidden if row["training"]]
        rows = sorted(active or hidden, key=lambda row: str(row["name"]))
        yield Finding(
            Severity.broken if active else Severity.note,
            f"{len(rows)} tensors that the loss depends on are not registered ({rows[0]['name']}): "
            "model.parameters() does not list them, so that no optimizer made from it moves them.",
            tuple(dict.fromkeys(row["name"].rpartition(".")[0] or row["name"] for row in rows)),
            {"tensors": len(rows), "elements": sum(row["elements"] for row in rows)},
            try_next=(Advice("register", "self.layers = nn.ModuleList(layers)"),),
            magnitude=5.0,
        )
    outside = len(rows) - len(hidden)
    if outside:
        yield Finding(
            Severity.note,
            f"{outside} tensors outside of the model get a gradient from this loss and are in no "
            "optimizer that was given.",
            ("loss",),
            {"tensors": outside},
        )


def _cut(facts: Row, large: float) -> Iterator[Finding]:
    """One finding per place of a cut."""
    places: dict[tuple[str, str], list[Row]] = {}
    for row in facts["unreached"]:
        if row["why"] == "cut":
            places.setdefault((row["op"], row["at"]), []).append(row)
    total = facts["trainable"]
    for rows in places.values():
        severity = _cut_severity(facts, rows, large * total)
        modules = tuple(dict.fromkeys(row["module"] for row in reversed(rows)))
        yield Finding(
            severity,
            f"{len(rows)} parameters ({rows[0]['name']}, ...) get no gradient, although the "
            f"{'loss' if facts['has_loss'] else 'output'} depends on them: "
            f"what they compute is {_how(rows[0])}.",
            modules,
            {"parameters": len(rows), "of": total, "op": rows[0]["op"], "line": rows[0]["at"]},
            confidence="likely" if rows[0]["op"] in ("numpy", "tolist") else "measured",
            try_next=_advice(rows[0]),
            magnitude=4.0 * len(rows) / total,
        )


def _cut_severity(facts: Row, rows: Sequence[Row], many: float) -> Severity:
    if not any(row["training"] for row in rows) or all(row["doubled"] for row in rows):
        return Severity.note
    asked_for = rows[0]["op"] == "no_grad"
    if facts["has_optimizer"]:
        held = any(row["held"] for row in rows)
        worst = Severity.risk if asked_for else Severity.broken
        return worst if held else Severity.note
    takes_first = any(row["module"] == facts["first_module"] for row in rows)
    outside = rows[0]["inside"] is None
    if asked_for or outside or not (takes_first or len(rows) >= many):
        return Severity.note
    return Severity.broken


def _how(row: Row) -> str:
    how = HOW.get(row["op"], f"sent through {row['op']}, which has no gradient")
    return f"{how} at {row['at']}" if row["at"] else how


def _advice(row: Row) -> tuple[Advice, ...]:
    if row["op"] == "argmax":
        return (Advice("soft-choice", "torch.nn.functional.gumbel_softmax(logits, hard=True)"),)
    if row["op"] in ("numpy", "tolist", "tensor"):
        return (Advice("stay-in-torch"),)
    return (Advice("keep-the-graph", f"# remove the {row['op']} at {row['at']}"),)


def _idle(rows: Sequence[Row]) -> Iterator[Finding]:
    idle = [row for row in rows if row["why"] != "cut"]
    if idle:
        modules = tuple(dict.fromkeys(row["module"] for row in idle))
        yield Finding(
            Severity.note,
            f"{len(idle)} parameters are not used in this pass ({idle[0]['name']}, ...).",
            modules,
            {"parameters": len(idle)},
            ruled_out=("a cut path: the outcome does not depend on them",),
        )


# --- Parameters that nobody steps --------------------------------------------------------------


def _in_vain() -> Finding:
    says = (
        "backward() ran and gave no parameter a gradient: the loss was made anew "
        "(torch.tensor(...), .item(), argmax) or detached before it"
    )
    patch = "assert loss.grad_fn is not None  # keep tensors, do not rebuild the loss from numbers"
    advice = (Advice("keep-the-graph", patch),)
    return Finding(Severity.broken, says, ("loss",), try_next=advice, magnitude=9.0)


def _around(bypassed: Row) -> Finding:
    """Say of a network that is stepped that the loss goes around it."""
    name, count, at = bypassed["network"], bypassed["tensors"], bypassed["at"]
    says = (
        f"the optimizer steps {name} ({count} parameters), and this loss reaches none of it: what "
        f"{name} computes is detached at {at}"
    )
    return Finding(
        Severity.broken,
        says,
        (name,),
        {"parameters": float(count), "op": "detach", "line": at},
        try_next=(Advice("keep-the-graph", f"# remove the detach at {at} in the step of {name}"),),
        magnitude=10.0,
    )


def _erased(record: Record) -> Iterator[Finding]:
    """Gradients that are gone when the optimizer steps, though the loss has some."""
    erased = record.facts.get("script", {}).get("erased")
    if not erased:
        return
    zero = record.facts.get("nonfinite", {}).get("no_gradient")
    if not erased["none"] and (zero or not record.facts["wiring"]["has_loss"]):
        return  # perhaps it is zero
    count = erased["parameters"]
    says = (
        f"backward() gave {count} parameters a gradient, and none of them has it when the "
        "optimizer steps: zero_grad() stands between backward() and step(), so that nothing moves"
    )
    patch = "optimizer.zero_grad()\nloss.backward()\noptimizer.step()  # in this order"
    yield Finding(
        Severity.broken,
        says,
        ("optimizer",),
        {"parameters": count},
        ruled_out=("the loss: its gradient is not zero",),
        try_next=(Advice("zero-before-backward", patch),),
        magnitude=9.0,
    )


@detector("G502", "not-in-optimizer", needs=("wiring",), explains=("G402",))
def not_in_optimizer(record: Record) -> Iterator[Finding]:
    """Parameters that get a gradient which no optimizer uses.

    **What it looks at.** For each module that the loss reaches, how many of its parameters are in
    the optimizer that was given, in forward order. Broken: some are not, and the optimizer holds
    tensors that belong to nothing in this network, as one does that was built before a layer was
    replaced; or it holds none of the network's. A risk, since nobody leaves these out on purpose:
    some of one module's parameters are missing while the optimizer has most of the network; a
    layer between stepped layers is missing; the last layer is; the first layers are, and their
    weights look newly drawn (the kurtosis of a uniform or normal law). Other whole parts that are
    missing (a pretrained trunk below a new head, the judge of a GAN) are a note.

    **Why it matters.** The gradient is computed and looks healthy, the weights never move, and as
    `optimizer.zero_grad` does not know them, their `.grad` grows with every step.

    **When it is wrong.** Another optimizer may step them: a script's others are seen, but
    `sg.check` is told of one. Training a subset
    by omission instead of `requires_grad_(False)` works and looks the same. Parameters of a loss
    function are matched by value.

    **What to try.** Build the optimizer after the model is complete, or `add_param_group`. Set
    `requires_grad_(False)` on what is not to be trained. An exhausted iterator (`filter(...)` used
    twice) is cured by a list.

    **References.** The threads of hyperIQA #32 and HVPNeT #5: users who found it by hand.
    """
    if record.facts.get("script", {}).get("bypassed"):  # no-gradient says it
        return
    facts = record.facts["wiring"]
    others = record.facts.get("script", {}).get("trained_by_others", ())
    owners = {name.rpartition(".")[0] for name in others}
    missing = [
        row for row in facts["steps"] if row["held"] < row["total"] and row["name"] not in owners
    ]
    if facts["has_optimizer"] and facts["steps"] and not any(r["held"] for r in facts["steps"]):
        missing = list(facts["steps"])
    if not facts["has_optimizer"] or not missing:
        return
    held = sum(row["held"] for row in facts["steps"])
    total = sum(row["total"] for row in facts["steps"])
    severity, why = _omission(facts, missing, held)
    names = tuple(row["name"] for row in missing)
    yield Finding(
        severity,
        f"{total - held} of {total} parameters that get a gradient are not in the optimizer "
        f"({names[0]}, ...): {why}.",
        names,
        {"missing": total - held, "of": total, "foreign": len(facts["foreign"])},
        confidence="measured" if severity is not Severity.risk else "likely",
        try_next=(
            Advice("rebuild-optimizer", "optimizer = type(optimizer)(model.parameters(), lr=lr)"),
        ),
        magnitude=3.0 * (total - held) / total,
    )


def _omission(facts: Row, missing: Sequence[Row], held: int) -> tuple[Severity, str]:
    """How bad the omission is, and why it is thought so."""
    if facts["foreign"]:
        count = len(facts["foreign"])
        return Severity.broken, f"it holds {count} tensors of something else instead"
    if not held:
        return Severity.broken, "it holds none of this network's"
    if not any(row["training"] for row in missing):
        return Severity.note, "they are in evaluation mode"
    elements = sum(row["elements"] for row in facts["steps"])
    most = sum(row["missing"] for row in missing) > 0.5 * elements
    drawn = any(row["fresh"] for row in missing)
    if most and not drawn:
        return Severity.note, "most of a trained network is left out, as when a head is trained"
    if drawn and not facts["steps"][0]["held"] and facts["steps"][-1]["held"]:
        return Severity.risk, "the first layers stay as they were drawn"
    return _hole(facts["steps"])


def _hole(steps: Sequence[Row]) -> tuple[Severity, str]:
    """Judge by where the missing modules stand among the stepped ones, in forward order."""
    if any(0 < row["held"] < row["total"] for row in steps):
        return Severity.risk, "of a layer it has some and not the others"
    has = [bool(row["held"]) for row in steps]
    first, last = has.index(True), len(has) - 1 - has[::-1].index(True)
    if not all(has[first : last + 1]) and not _whole_part(steps, has):
        return Severity.risk, "layers before and after them are stepped"
    if all(has[:-1]) and len(has) > 1:
        return Severity.risk, "the last layer stays as it was drawn"
    return Severity.note, "a whole part of the network is left out"


def _whole_part(steps: Sequence[Row], has: Sequence[bool]) -> bool:
    """Whether what is missing are whole top-level parts of more than one layer each."""
    parts: dict[str, list[bool]] = {}
    for row, is_held in zip(steps, has, strict=True):
        parts.setdefault(row["name"].partition(".")[0], []).append(is_held)
    gone = [held for held in parts.values() if not all(held)]
    return all(not any(held) and len(held) > 1 for held in gone)
