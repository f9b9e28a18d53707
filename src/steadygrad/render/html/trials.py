"""What was tried, beside no change and on the same seeds, and the lines to paste."""

from __future__ import annotations

from collections.abc import Iterator

from steadygrad.core.trial import Cure, Trial
from steadygrad.render.code import broken, whole
from steadygrad.render.html.markup import Markup, joined, safe, table, tag
from steadygrad.render.html.page import Part, Subject, section
from steadygrad.render.trials import effect_of, loss_of, name_of, proof_of, verdict_of

CODE = 100  # letters of a line of code, where it can be broken
NOTE = (
    "Each trial is the training itself with one thing changed, beside no change on the same seeds "
    "and batches. The loss is the median of the last fifth of the steps; the difference is a mean "
    "over seeds with its 95 % interval. Only what is better on every seed is prescribed."
)


def trials(subject: Subject) -> Part | None:
    """Tell what was tried; nothing where nothing was."""
    cure = subject.report.cure
    if cure is None or len(cure.trials) < 2:
        return None
    heads = ("remedy", "steps", "loss, seed by seed", "against no change", "verdict")
    rows = [_row(one) for one in cure.trials if one.verdict != "unfit"]
    shown = table(heads, rows, class_="trials")
    return Part(section("trials", "Trials", NOTE, *_prescribed(cure), shown, *_unfit(cure)))


def _row(one: Trial) -> tuple[str, ...]:
    losses = " ".join(loss_of(loss) for loss in one.after)
    against = effect_of(one) if one.remedies else ""
    said = verdict_of(one) if one.remedies else ""
    return name_of(one), str(one.steps), losses, against, said


def _prescribed(cure: Cure) -> Iterator[Markup]:
    """The lines to paste, and what a longer run has shown."""
    chosen = cure.prescription
    if chosen is None:
        yield tag("p", tag("b", "Nothing helped on every seed."))
    else:
        do, proof = proof_of(chosen)
        yield tag("p", tag("b", f"{do.capitalize()}: {chosen.name}"), tag("span", f" ({proof})"))
        lines = "\n".join(broken(whole(chosen.patch), CODE))
        yield tag("pre", tag("code", lines), tabindex="0")
    longer = cure.confirmation
    if longer is not None:
        before, after = loss_of(longer.before), loss_of(longer.after)
        yield tag(
            "p", f"Run for {longer.steps} steps on one seed, the loss is {after}, not {before}."
        )
    for sentence in cure.said:
        yield tag("p", sentence, class_="note")


def _unfit(cure: Cure) -> Iterator[Markup]:
    """What had nothing to change here, and why."""
    found = [one for one in cure.trials if one.verdict == "unfit" and not one.random]
    if found:
        rows = [tag("li", tag("b", one.name), ": ", safe(one.why)) for one in found]
        yield tag("details", tag("summary", f"{len(found)} did not fit"), tag("ul", joined(rows)))
