"""A loss that stands, for whatever reason."""

from __future__ import annotations

from collections.abc import Iterator

from steadygrad.core.finding import Advice, Finding, Severity, detector
from steadygrad.core.record import Record
from steadygrad.detectors.steps.course import course_of


@detector("G411", "stuck-loss", needs=("loss",))
def stuck_loss(record: Record, *, steps: int = 300) -> Iterator[Finding]:
    """A loss that is no better than a constant prediction, for long.

    **What it looks at.** The loss against that of the best constant prediction of the targets,
    which is what a network can reach without looking at its input: the median of the last quarter
    and the loss of the last batch are both within 2 % below it or above, and do not fall any more,
    after at least `steps` = 300 steps (chosen by us: language models may stay at the frequencies of
    their tokens for a hundred). That is a risk. Where nobody knows what a constant costs, a loss
    that did not fall by more than its noise is a note: a network that has converged, a policy's
    gradient and opponents look the same.

    **Why it matters.** Nothing has been learned. Why is not known here: when another finding
    explains it, it stands below that one.

    **When it is wrong.** Targets that cannot be predicted from these inputs. Tasks that stand for
    thousands of steps before they fall (parities, modular sums).

    **What to try.** Learn one batch by heart: a network that can't has a fault, one that can has a
    task too hard or labels that do not belong to their inputs. `steadygrad check` looks closer.

    **References.** rasbt/deeplearning-models #76 (2.303 = ln 10 for five reasons).
    """
    course = course_of(record)
    if not course.ill or course.steps < steps:
        return
    fails = course.state == "fails"
    yield Finding(
        Severity.risk if fails else Severity.note,
        f"in {course.steps} steps {course.words}{': the cause is not known' if fails else ''}.",
        ("loss",),
        {"loss": course.end, "start": course.start, "constant": course.constant},
        confidence="likely" if fails else "possible",
        try_next=(Advice("learn-one-batch"),),
        magnitude=1.0,
    )
