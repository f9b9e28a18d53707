"""Initial values: units that stay equal, memory that nobody wrote to, clones, and idle norms."""

from __future__ import annotations

from collections.abc import Iterator

from steadygrad.core.finding import Advice, Finding, Severity, detector
from steadygrad.core.record import Record
from steadygrad.detectors.step import Arms

SYMMETRIC = ("G102", "G104", "G105", "G301", "G401", "G403")


@detector("G203", "symmetric-init", needs=("values",), explains=SYMMETRIC)
def symmetric_init(record: Record) -> Iterator[Finding]:
    """Units that start equal and stay equal, or weights that start at zero and stay there.

    **What it looks at.** Weights of which all units are equal (zeros included) and whose gradients
    are equal too. A copy of the model then takes three gradient steps of 3 % of each weight's size,
    since a zero gate before a zero branch before a zero head heals one by one. What is still equal
    then, to 1e-4, and changes the outcome when it is filled with noise, is broken. There is no
    threshold on the values: the mechanism is tried. (Three steps and 3 % are chosen by us.) Where
    half of the matrices start as copies of one random row, the gradients do part them, yet each
    layer passes one number on: a risk when the loss also stands in the trial of your optimizer.

    **Why it matters.** A layer of equal units is one unit, however wide it is; a zero layer behind
    a zero layer passes neither signal nor gradient. No number of steps parts them.

    **When it is wrong.** It is silent on what heals: LoRA's B, zero gammas and LayerScale, zero
    heads, ReZero, zero convolutions, layers with dropout behind them. A gate that takes more than
    three steps to open would be reported wrongly.

    **What to try.** Draw the weights: `kaiming_normal_`, `orthogonal_`. Of two factors (LoRA's A
    and B) exactly one may be zero.

    **References.** Goodfellow et al., Deep Learning (2016), section 8.4; Hu 2021 (LoRA), section
    4.1; Zhao 2021 (ZerO): zero initialisation and how it fails.
    """
    stuck = record.facts["values"]["stuck"]
    if not stuck:
        yield from _slow_to_part(record)
        return
    names = tuple(dict.fromkeys(row["name"].rpartition(".")[0] for row in stuck))
    zero = all(row["zero"] for row in stuck)
    says = (
        f"the weights of {names[0]} are zero and stay zero: signal and gradient are blocked."
        if zero
        else f"all units of {names[0]} are equal and get equal gradients: they act as one for ever."
    )
    yield Finding(
        Severity.broken,
        says,
        names,
        {"weights": len(stuck), "first": stuck[0]["name"], "kind": "zero" if zero else "equal"},
        ruled_out=("zero by design: three steps did not part the units",),
        try_next=(Advice("draw-weights", f"nn.init.kaiming_normal_(model.{stuck[0]['name']})"),),
        magnitude=8.0,
    )


def _slow_to_part(record: Record) -> Iterator[Finding]:
    """Copies of one row that steps part too slowly for the loss to fall."""
    facts, trial = record.facts["values"], record.facts.get("trial")
    copies = facts["copies"]
    if len(copies) < 2 or 2 * len(copies) < facts["matrices"] or not trial:
        return
    arms = Arms(trial["losses"])
    if arms.fall("lr") < 0.15:
        losses = arms.losses["lr"]
        yield Finding(
            Severity.risk,
            f"all units of {copies[0].rpartition('.')[0]} start as copies of one, so that each "
            f"such layer passes one number on; over {len(losses) - 1} steps the loss goes from "
            f"{losses[0]:.3g} to {losses[-1]:.3g}.",
            tuple(name.rpartition(".")[0] for name in copies),
            {"weights": len(copies), "first": copies[0], "kind": "equal"},
            try_next=(Advice("draw-weights", f"nn.init.kaiming_normal_(model.{copies[0]})"),),
            magnitude=8.0,
        )


@detector(
    "G204",
    "uninitialised-memory",
    needs=("values",),
    explains=("G002", "G003", "G006", "G101", "G201", "G202", "G203"),
)
def uninitialised_memory(record: Record) -> Iterator[Finding]:
    """Parameters made with `torch.empty` that nobody filled.

    **What it looks at.** Signs of memory as it was found: a largest magnitude beyond 1e4 and a
    million times the median, or more than 1 % of elements below 1e-30 and not zero. NaN alone is
    no such sign (see nonfinite-forward). Where the network was built twice under one seed (fact
    `builds`), a parameter that differs between the builds and looks like this, or that carries the
    pattern new memory was filled with, is certain. One that only differs is a note: it may be drawn
    from another generator. All thresholds are chosen by us: no initializer draws over six decades.

    **Why it matters.** The values depend on what the process did before: NaN on one machine, a
    harmless zero on another. Results cannot be reproduced.

    **When it is wrong.** Fresh memory is often zero and then looks like a zero initialisation: only
    the two builds see it, and not always. A checkpoint of a diverged run looks the same.

    **What to try.** `nn.init` after `torch.empty`; `torch.zeros` or `torch.randn` in its place.
    `torch.utils.deterministic.fill_uninitialized_memory` makes it show.

    **References.** openai/CLIP #15, huggingface/transformers #30953.
    """
    facts = record.facts["values"]
    builds = record.facts.get("builds") or {}
    differing, filled = set(builds.get("differing", [])), list(builds.get("filled", []))
    garbage = list(dict.fromkeys([*facts["garbage"], *filled]))
    if garbage:
        certain = bool(filled) or bool(differing & set(garbage))
        owners = tuple(dict.fromkeys(name.rpartition(".")[0] or name for name in garbage))
        yield Finding(
            Severity.broken if certain else Severity.risk,
            f"{garbage[0]} looks like memory that nobody wrote to.",
            owners,
            {"parameters": len(garbage), "parameter": garbage[0]},
            confidence="measured" if certain else "likely",
            try_next=(Advice("fill", f"nn.init.normal_(model.{garbage[0]}, std=0.02)"),),
            magnitude=9.0,
        )
    others = sorted(differing - set(garbage))
    if others:
        yield Finding(
            Severity.note,
            f"{others[0]} differs between two builds from one seed: it is drawn from a generator "
            "that torch.manual_seed does not set, or not drawn at all.",
            tuple(others),
            {"parameters": len(others)},
        )


@detector("G206", "cloned-init", needs=("clones",))
def cloned_init(record: Record) -> Iterator[Finding]:
    """Layers that start as copies of each other without sharing their weights.

    **What it looks at.** Trainable matrices that are equal element by element in different modules,
    are not one tensor, and are not constant.

    **Why it matters.** Little, mostly: it is always a note. `nn.TransformerEncoder` deep-copies one
    layer, and its layers learn to differ, because they stand at different depths. In deep post-norm
    stacks the outputs for different inputs start more alike (measured at 24 layers: cosine 0.89 to
    0.99, against 0.82 to 0.97 when every layer is drawn).

    **When it is wrong.** When the copies are meant: a target network, a Siamese start.

    **What to try.** Draw each layer anew: `for p in model.parameters(): if p.dim() > 1:
    nn.init.xavier_uniform_(p)`.

    **References.** pytorch/pytorch #72253, #86274.
    """
    groups = record.facts["clones"]
    if not groups:
        return
    most = max(groups, key=len)
    yield Finding(
        Severity.note,
        f"{len(most)} weights start as copies of {most[0]}.",
        tuple(dict.fromkeys(name.rpartition(".")[0] for name in most)),
        {"groups": len(groups), "copies": len(most)},
        try_next=(Advice("draw-each-layer"),),
    )


@detector(
    "G506",
    "idle-norm",
    needs=("idle_norms",),
    explains=("G101", "G102", "G103", "G104", "G105", "G201", "G202", "G205", "G304", "G401"),
)
def idle_norm(record: Record) -> Iterator[Finding]:
    """Batch norms in evaluation mode, whose statistics are still those they were made with.

    **What it looks at.** Batch norms that are in evaluation mode when the network is about to be
    trained, and whose running mean is 0 and running variance 1 throughout.

    **Why it matters.** They divide by 1 and subtract 0: the network trains as if it had none. A
    deep one then loses or blows up its signal, which looks like a wrong initialisation.

    **When it is wrong.** Statistics may be loaded after the first step. Norms that are frozen with
    the statistics of a pretraining are left alone.

    **What to try.** `model.train()` before the loop, and again after each evaluation.

    **References.** Ioffe 2015, section 3.1 (what the running statistics are for); torch's
    documentation of `Module.train`.
    """
    names = record.facts["idle_norms"]
    if not names:
        return
    yield Finding(
        Severity.risk,
        f"{len(names)} batch norms ({names[0]}, ...) are in evaluation mode with the statistics "
        "they were made with, mean 0 and variance 1: they normalise nothing.",
        tuple(names),
        {"norms": float(len(names))},
        try_next=(Advice("train-mode", "model.train()  # before the loop, after each evaluation"),),
        magnitude=6.0,
    )
