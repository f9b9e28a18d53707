"""What a loss was given over many steps: what is squashed twice, and targets out of range."""

from __future__ import annotations

import math
from collections.abc import Iterator

from steadygrad.core.finding import Advice, Finding, Severity, detector
from steadygrad.core.record import Record

SQUASHED = {
    "cross_entropy": ("softmax", "sigmoid"),
    "binary_cross_entropy_with_logits": ("sigmoid", "softmax"),
}
SHARES = ("binary_cross_entropy", "binary_cross_entropy_with_logits")


@detector("G303", "blocked-output", needs=("given",), explains=("G102", "G402", "G411"))
def blocked_output(record: Record) -> Iterator[Finding]:
    """Scores that are squashed before a loss that squashes them itself.

    **What it looks at.** The op that made what the loss was given, views apart, in each of the
    backward passes that were looked at: a softmax or sigmoid before `cross_entropy`, a sigmoid
    before `binary_cross_entropy_with_logits`. log_softmax twice is harmless and not reported.

    **Why it matters.** The loss keeps a floor (ln(e + C - 1) - 1, 1.46 for ten classes) and passes
    a fraction of the gradient (0.12 for ten classes, 0.003 for a thousand, measured): a network
    that learns slowly and never well.

    **When it is wrong.** Probabilities that are meant to be scores.

    **What to try.** Take the squashing away and give the loss the scores.

    **References.** MobileNetV2.pytorch #5, Co-teaching #4.
    """
    given = record.facts["given"]
    if not given or given["end"] not in SQUASHED.get(given["loss"], ()):
        return
    classes = max(int(given["classes"]), 2)
    floor = ""
    if given["loss"] == "cross_entropy":
        floor = f", and no loss of {classes} classes below {math.log(math.e + classes - 1) - 1:.3g}"
    yield Finding(
        Severity.risk,
        f"a {given['end']} stands before {given['loss']}, which squashes the scores itself: a "
        f"fraction of the gradient passes{floor}.",
        ("loss",),
        {"classes": float(classes), "op": given["end"]},
        try_next=(Advice("give-scores", f"# give {given['loss']} the scores"),),
        magnitude=4.0,
    )


@detector("G603", "label-out-of-range", needs=("given",), explains=("G003", "G004", "G101", "G412"))
def label_out_of_range(record: Record) -> Iterator[Finding]:
    """Targets of a binary cross-entropy that are not between 0 and 1.

    **What it looks at.** The targets of the backward passes that were looked at: below 0 or above
    1, where the loss has no lower bound and falls for ever.

    **Why it matters.** A loss below zero that goes on falling looks like a run that learns, until
    the scores overflow. Masks of 0 and 255 do this.

    **When it is wrong.** Not that we know: torch's formula holds from 0 to 1.

    **What to try.** Divide masks by 255; map labels to 0 and 1.

    **References.** torch.nn.BCEWithLogitsLoss; pytorch #2623.
    """
    given = record.facts["given"]
    said = any(one["code"] == "G603" for one in record.facts.get("cause") or ())
    if (
        said
        or not given
        or given["loss"] not in SHARES
        or (given["low"] >= 0 and given["high"] <= 1)
    ):
        return
    yield Finding(
        Severity.broken,
        f"the targets of {given['loss']} reach from {given['low']:.3g} to {given['high']:.3g}, "
        "where it takes 0 to 1: it has no lower bound then.",
        ("target",),
        {"low": given["low"], "high": given["high"]},
        try_next=(Advice("scale-targets", "mask = mask / 255"),),
        magnitude=6.0,
    )
