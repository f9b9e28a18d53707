"""The order of calls: gradients that are not cleared, and clipping that cannot act."""

from __future__ import annotations

from collections.abc import Iterator

from steadygrad.core.finding import Advice, Finding, Severity, detector
from steadygrad.core.record import Record
from steadygrad.detectors.steps.course import course_of

ORDER = "optimizer.zero_grad()\nloss.backward()\noptimizer.step()  # in this order"
CLIP = (
    "scaler.unscale_(optimizer)  # with a GradScaler\n"
    "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)\n"
    "optimizer.step()  # scaler.step(optimizer)"
)
SYMPTOMS = ("G003", "G101", "G102", "G108", "G301", "G302", "G402", "G411", "G412")


@detector("G404", "stale-gradient", needs=("stale",), explains=SYMPTOMS)
def stale_gradient(record: Record, *, share: float = 0.1, steps: int = 5) -> Iterator[Finding]:
    """Gradients of the step before that are still there when the next ones are added.

    **What it looks at.** Whether a gradient of the step before is left when the first backward
    pass of a step starts; the order forward, zero_grad, backward is fine, and so is accumulation
    within a step. It is a risk when it happens in a `share` = 10 % of at least `steps` = 5 steps,
    broken when it happens in nine of ten and the loss does not fall (chosen by us), otherwise a
    note.

    **Why it matters.** Each step follows the sum of all gradients so far: the loss oscillates or
    stands, and is never NaN. On a quadratic, SGD at 0.05 ended at 10.8 instead of 0.003 (measured).

    **When it is wrong.** Gradients that are kept on purpose, as a momentum of one's own.

    **What to try.** `optimizer.zero_grad()` before `backward()`, also in a step that is skipped.

    **References.** PyTorch, "Zeroing out gradients"; grokfast #9 (a norm that grows by one factor
    in every step).
    """
    facts = record.facts["stale"]
    could = max(facts["steps"] - 1, 0)  # nothing comes before the first step
    stale = facts["stale"]
    if not stale or not could:
        return
    line = _line(facts.get("line"))
    often = could >= steps and stale >= share * could
    always = often and stale >= 0.9 * could
    severity = Severity.risk if often else Severity.note
    if always and course_of(record).ill:
        severity = Severity.broken
    yield Finding(
        severity,
        f"{stale} of {facts['steps']} steps began their backward pass on top of the gradients of "
        f"the step before{line and f' ({line})'}: zero_grad() is missing.",
        ("optimizer",),
        {"stale": float(stale), "steps": float(facts["steps"]), "line": line},
        confidence="measured" if often else "possible",
        try_next=(Advice("zero-before-backward", ORDER),),
        magnitude=9.0 * stale / facts["steps"],
    )


@detector("G408", "useless-clip", needs=("clip_order",), explains=("G108", "G402"))
def misplaced_clip(record: Record, *, share: float = 0.1, least: int = 2) -> Iterator[Finding]:
    """Clipping at a place where it does not do what it says.

    **What it looks at.** Calls of `clip_grad_norm_` and `clip_grad_value_` after the step and
    before the next backward pass, where nothing uses the gradients any more; before the backward
    pass; and before `unscale_`, while the gradients carry a loss scale. It is a risk when a
    `share` = 10 % of the steps, and at least `least` = 2, have one (chosen by us).

    **Why it matters.** After the step nothing is clipped. Before `unscale_` everything is: a norm
    of 5 times a scale of 65536 is cut to 1, and the step becomes 1/65536 of what it was, which
    looks like a gradient that vanishes.

    **When it is wrong.** A clip that only reads the norm for the log: one whose threshold is
    infinite, or 1000 times the norm, is left alone.

    **What to try.** backward, unscale, clip, step: in this order.

    **References.** PyTorch, "Automatic mixed precision examples", gradient clipping; Lightning
    #9606, icefall #2081.
    """
    facts = record.facts["clip_order"]
    kinds = {
        "after_step": "after the step",
        "before_backward": "before the backward pass",
        "before_unscale": "before unscale_, on gradients that carry the loss scale",
    }
    kind = max(kinds, key=lambda one: facts.get(one, 0))
    count, steps = facts.get(kind, 0), max(facts["steps"], 1)
    if count < max(least, share * steps):
        return
    line = _line(facts.get("line"))
    yield Finding(
        Severity.risk,
        f"gradients are clipped {kinds[kind]}{line and f' ({line})'} in {count} of {steps} steps.",
        ("optimizer",),
        {kind: float(count), "steps": float(steps), "line": line},
        try_next=(Advice("clip-norm", CLIP),),
        magnitude=3.0,
    )


def _line(place: object) -> str:
    """Write [file, line] as file:line; '' where it is not known."""
    return ":".join(map(str, place)) if isinstance(place, list | tuple) else str(place or "")
