"""A batch whose samples are all the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from steadygrad.core.finding import Advice, Finding, Severity, detector
from steadygrad.core.record import Record

Fact = Mapping[str, Any]  # JSON-like, see core.record.Facts


@detector(
    "G608",
    "constant-input",
    needs=("alike", "losses"),
    explains=("G102", "G104", "G105", "G201", "G301", "G401", "G402", "G606"),
)
def constant_input(record: Record) -> Iterator[Finding]:
    """A batch in which every sample is the same, zeros among others, while the targets differ.

    **What it looks at.** Everything that the model is given. When each tensor holds at least four
    samples, all of them equal, when nothing in the forward pass tells samples apart (noise, a graph
    that the model holds) before dropout or a norm, and when a loss compares as many predictions
    with targets that differ, nothing can be learned but one answer for all. There is no threshold
    but the least number of samples (chosen by us).

    **Why it matters.** The loss falls to that of a constant prediction and stays, and everything
    about the network is fine. Images divided by 255 as whole numbers are zero; a loader that writes
    into one buffer, or a wrong index, returns the same sample again and again.

    **When it is wrong.** When one distribution is fitted without any input, and a dummy is given in
    its place, and where the first states of an environment are all the same. It is a risk, never
    broken, since one batch may be blank by chance. Equal samples with equal targets (overfitting
    one sample as a test) and inputs made inside the model (learned queries, a learned constant) are
    left alone.

    **What to try.** Look at the batch: `x.std(0)`; divide by 255.0 after `.float()`.

    **References.** Karpathy, A recipe for training neural networks: "visualize just before the
    net", and the input-independent baseline.
    """
    alike = record.facts["alike"]
    if not alike:
        return
    for one in record.facts["losses"]:
        if _asks_for_more(one, alike["samples"]):
            what = "zero" if alike["zero"] else "the same"
            yield Finding(
                Severity.risk,
                f"all {alike['samples']} samples are {what}, and the targets of {one['name']} "
                "differ: no prediction can be better than one constant.",
                ("data",),
                {"samples": float(alike["samples"]), "loss": one["value"]},
                try_next=(
                    Advice("look-at-the-data", "assert x.float().std(0).max() > 0  # over a batch"),
                ),
                magnitude=6.0,
            )
            return


def _asks_for_more(one: Fact, samples: int) -> bool:
    """Whether a loss compares one prediction per sample with targets that differ."""
    target = one["target"]
    if not target.get("shape") or {target["shape"][0], *one["input"]["shape"][:1]} != {samples}:
        return False
    if target["spread"] is not None:
        return bool(target["spread"] > 0)
    return len(target["shape"]) == 1 and bool(target["min"] < target["max"])
