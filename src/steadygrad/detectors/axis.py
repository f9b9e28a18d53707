"""A softmax over another axis than the one on which the loss finds the classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from steadygrad.core.finding import Advice, Finding, Severity, detector
from steadygrad.core.record import Record

Fact = Mapping[str, Any]  # JSON-like, see core.record.Facts


@detector(
    "G305", "wrong-axis", needs=("losses",), explains=("G303", "G402", "G411", "G412", "G603")
)
def wrong_axis(record: Record) -> Iterator[Finding]:
    """A softmax over the samples (or another axis), before a loss that has the classes elsewhere.

    **What it looks at.** What nll_loss and cross_entropy are given, where a softmax or log_softmax
    put it out, views apart: its exponentials (or itself) sum to one along an axis that is not the
    classes', and not along the classes'. That is an identity of softmax, up to rounding (1e-3).

    **Why it matters.** The samples of a batch compete with each other instead of the classes: the
    loss has a floor (the logarithm of how many samples share a class), a single sample is always
    predicted with certainty, and the predictions depend on the batch.

    **When it is wrong.** Where samples are meant to compete, as in contrastive losses: scores
    [n, n] of which every class is asked for once are left alone.

    **What to try.** `dim=1` (or -1), or cross_entropy on the scores.

    **References.** torch.nn.functional.nll_loss: "(N, C) where C = number of classes"; the implicit
    dim of softmax is deprecated, since it took axis 0 for 0-, 1- and 3-dimensional input.
    """
    for one in record.facts["losses"]:
        axis, end = one.get("softmax_axis"), one["end"]
        if axis is None or one["contrast"] or "softmax" not in end["op"]:
            continue
        names = [name for name in (end["module"], end["feeder"]) if name]
        where = ("loss", *names) if end["module"] is None else (*names, "loss")
        size = one["input"]["shape"][axis]
        what = "samples" if axis == 0 else "positions"
        op = "log_softmax" if one["name"] == "nll_loss" else "softmax"
        yield Finding(
            Severity.broken,
            f"the {op} before {one['name']} runs over axis {axis}, {size} {what}, and the loss "
            f"has the {one['classes']} classes on axis {1 if len(one['input']['shape']) > 1 else 0}"
            f": {what} compete where classes should",
            where,
            {"axis": float(axis), "classes": float(one["classes"])},
            try_next=(Advice("class-axis", "F.cross_entropy(scores, y)  # or softmax(dim=1)"),),
            magnitude=5.0,
        )
        return
