"""The loss scale over many steps: a calibration, or a scale that falls and falls."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from steadygrad.core.finding import Advice, Finding, Severity, detector
from steadygrad.core.record import Record

Floats = NDArray[np.float64]


@detector("G008", "loss-scale-collapse", needs=("scale", "skipped"), explains=("G411",))
def loss_scale_collapse(record: Record, *, halvings: int = 5, start: int = 50) -> Iterator[Finding]:
    """A loss scale that is halved again and again, because every step overflows.

    **What it looks at.** The scale of a GradScaler and the steps that it skipped, after the first
    step that was made and the first `start` = 50: a run begins with the scale being halved until it
    fits (from 2^24 in five to seven steps, measured). Later one skip per
    growth interval is how the scaler works. It is a risk when the scale is halved at least
    `halvings` = 5 times without growing in between (chosen by us: each is a step lost), within one
    growth interval, and broken when it falls below 1, where no gradient of a half-precision
    network needs it to be.

    **Why it matters.** No step is made while the scale falls, and the log shows a loss all the
    same. What overflows at any scale overflows in the forward pass, or is not finite at all.

    **When it is wrong.** A start whose first step is made by luck while the scale is still too
    large; an `init_scale` of your own below 1.

    **What to try.** bfloat16; the one op that overflows in float32; see what is not finite.

    **References.** Micikevicius 2018, section 3.2; pytorch #40497; Chinese-LLaMA-Alpaca #534.
    """
    skipped = record.series("skipped", "step")
    for column in range(skipped.shape[1]):
        scale = record.series("scale", "step")[:, column]
        yield from _collapse(record, scale, skipped[:, column] > 0, halvings, start)


def _collapse(
    record: Record, scale: Floats, skipped: NDArray[np.bool_], halvings: int, start: int
) -> Iterator[Finding]:
    known = np.isfinite(scale) & (scale > 0)
    scale, skipped, steps = scale[known], skipped[known], record.steps[known]
    if not skipped.any() or (scale == 1).all():
        return
    made = np.flatnonzero(~skipped & (steps >= steps[0] + start))
    begin = int(made[0]) if len(made) else 0
    below = bool(np.any((scale < 1) & skipped))
    interval = int((record.facts.get("scaler") or {}).get("growth_interval", 2000))
    fall, first, last = _longest_fall(np.log2(scale[begin:]), steps[begin:], interval)
    if not below and (fall < halvings or not len(made)):
        return
    yield Finding(
        Severity.broken if below else Severity.risk,
        f"the loss scale fell to {scale.min():.3g}, {int(skipped.sum())} of {len(steps)} steps "
        "were skipped: something overflows at any scale.",
        ("optimizer",),
        {"scale": float(scale.min()), "halvings": fall, "skipped": float(skipped.sum())},
        try_next=(Advice("bfloat16", "torch.autocast(device_type, torch.bfloat16)"),),
        steps=(first, last),
        magnitude=fall,
    )


def _longest_fall(
    octaves: Floats, steps: NDArray[np.int64], interval: int
) -> tuple[float, int, int]:
    """Find the longest fall without a rise within an interval: octaves, first and last step."""
    best, top = (0.0, 0, 0), 0
    for place in range(1, len(octaves)):
        if octaves[place] > octaves[place - 1]:
            top = place
        while steps[place] - steps[top] > interval:
            top += 1
        fall = float(octaves[top] - octaves[place])
        if fall > best[0]:
            best = (fall, int(steps[top]), int(steps[place]))
    return best
