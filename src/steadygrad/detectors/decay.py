"""Weight decay that outweighs what the gradient builds up."""

from __future__ import annotations

from collections.abc import Iterator

from steadygrad.core.finding import Advice, Finding, Severity, detector
from steadygrad.core.record import Record
from steadygrad.detectors.step import Arms

SYMPTOMS = ("G102", "G104", "G401", "G402", "G403")


@detector("G410", "decay-too-strong", needs=("update", "trial"), explains=SYMPTOMS)
def decay_too_strong(
    record: Record, *, least: float = 0.1, part: float = 0.5, still: float = 0.01
) -> Iterator[Finding]:
    """A weight decay that takes the weights away faster than the gradient builds them.

    **What it looks at.** Every step multiplies the weights by 1 - lr * weight_decay (SGD and AdamW
    alike; with SGD's momentum m it acts 1 / (1 - m) times as strongly). Where that takes more than
    1 % per step, up to 60 steps of your optimizer are tried on copies with the decay and without,
    on one batch under the same random numbers. It is a finding when the loss falls by at least
    `least` = 10 % without the decay, by less than `part` = half of that with it, and then stands,
    to `still` = 1 % of the loss, over the second half of the trial (all chosen by us).

    **Why it matters.** The weights shrink to nothing in a few steps, and the loss goes to what a
    constant prediction costs: it looks as if the network could not learn. Customary values of
    lr * weight_decay lie between 1e-6 and 1e-3.

    **When it is wrong.** When the lr falls soon: the decay falls with it.

    **What to try.** A weight decay of 1e-4 (SGD) to 0.1 (AdamW).

    **References.** Loshchilov 2019 (AdamW); Krogh 1991 (weight decay).
    """
    facts, arms = record.facts["update"], Arms(record.facts["trial"]["losses"])
    mine, free = arms.fall("lr"), arms.fall("no-decay")
    losses = arms.losses["lr"]
    stands = abs(losses[len(losses) // 2] - losses[-1]) < still * arms.scale
    if free < least or mine > part * free or not stands:
        return
    decay = facts["decay"] / facts["lr"] if facts["lr"] else 0.0
    yield Finding(
        Severity.broken,
        f"lr times weight decay takes {facts['decay']:.2g} of every weight per step: the loss goes "
        f"from {losses[0]:.3g} to {losses[-1]:.3g} and stands, without the decay to "
        f"{arms.losses['no-decay'][-1]:.3g}.",
        ("optimizer",),
        {"decay": facts["decay"], "momentum": facts["momentum"], "lr": facts["lr"]},
        ruled_out=("the batch, the lr, the randomness: they are the same in both arms",),
        try_next=(Advice("weaker-decay", f"weight_decay={min(1e-4, decay / 1e3):.0g}"),),
        magnitude=4.0,
    )
