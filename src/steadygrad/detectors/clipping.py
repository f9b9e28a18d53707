"""Clipping that acts always, or never."""

from __future__ import annotations

from collections.abc import Iterator

from steadygrad.core.finding import Advice, Finding, Severity, detector
from steadygrad.core.record import Record


@detector("G409", "constant-clip", needs=("clipping",))
def constant_clip(record: Record, *, share: float = 0.5, steps: int = 100) -> Iterator[Finding]:
    """A threshold so low that clipping is the rule.

    **What it looks at.** The share of steps whose gradients were clipped. Above `share` = 0.5 of at
    least `steps` = 100 steps it is a note (both chosen by us). A quantile policy is meant to clip
    that often, and is told the same.

    **Why it matters.** When every gradient is scaled to one norm, the threshold is a learning rate
    in disguise: SGD steps by lr * max_norm whatever the gradient is. Adam hardly notices, as its
    second moment follows; its steps shrink only where norms differ.

    **When it is wrong.** Normalised gradients may be what is wanted (language models clip most
    steps of their warm-up).

    **What to try.** `handle.suggest()` shows what other thresholds would have clipped; the 99th
    percentile cuts what is unusual.

    **References.** Pascanu 2013, section 3.2: a threshold of half to ten times the average norm.
    """
    facts = record.facts["clipping"]
    if facts["steps"] >= steps and facts["clipped"] > share * facts["steps"]:
        yield Finding(
            Severity.note,
            f"{facts['clipped'] / facts['steps']:.0%} of {facts['steps']} steps were clipped: a "
            "threshold that always binds is a smaller learning rate.",
            ("optimizer",),
            {"clipped": facts["clipped"], "steps": facts["steps"]},
            try_next=(Advice("clip-norm", "print(handle.suggest())"),),
        )


@detector("G408", "useless-clip", needs=("clipping",))
def useless_clip(record: Record, *, times: float = 10.0, steps: int = 1000) -> Iterator[Finding]:
    """A threshold that no gradient comes near.

    **What it looks at.** The largest norm against the threshold. When over `steps` = 1000 steps
    nothing was clipped, and the largest norm was more than `times` = 10 below the threshold, it is
    a note (both chosen by us).

    **Why it matters.** It guards against nothing short of a disaster; or gradients are clipped
    somewhere else already, before they are unscaled or after the step.

    **When it is wrong.** A wide threshold that waits for a rare spike is a fair choice.

    **What to try.** The 99th percentile of the norms: `handle.suggest()`.

    **References.** GradScaler's scale on gradients makes thresholds mean something else: pytorch's
    notes on automatic mixed precision, "Gradient clipping".
    """
    facts = record.facts["clipping"]
    if facts["steps"] >= steps and not facts["clipped"]:
        largest, threshold = facts["largest"], facts["threshold"]
        if 0 < largest * times < threshold:
            yield Finding(
                Severity.note,
                f"no step of {facts['steps']} was clipped: the largest norm was {largest:.3g}, the "
                f"threshold is {threshold:.3g}.",
                ("optimizer",),
                {"largest": largest, "threshold": threshold},
                try_next=(Advice("clip-norm", f"sg.clip_norm({largest:.2g})"),),
            )
