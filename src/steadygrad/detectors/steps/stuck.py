"""A loss that stands, for whatever reason."""

from __future__ import annotations

from collections.abc import Iterator

from steadygrad.core.finding import Advice, Finding, Severity, detector
from steadygrad.core.record import Record
from steadygrad.detectors.steps.course import course_of


@detector("G411", "stuck-loss", needs=("loss",))
def stuck_loss(record: Record, *, steps: int = 1000, least: int = 300) -> Iterator[Finding]:
    """A loss that is no better than a constant prediction, for long.

    **What it looks at.** The loss against that of the best constant prediction of the targets,
    which is what a network can reach without looking at its input: the median of the last quarter
    and the loss of the last batch are both within 2 % below it or above, and do not fall any more.
    That is a note from `least` = 300 steps on and a risk from `steps` = 1000 on (chosen by us: a
    GRU that had to remember the first of 15 inputs stood for 300 steps, then learned in 200). Where
    nobody knows what a constant costs, a loss that did not fall by more than its noise is a note: a
    network that has converged and a policy's gradient look the same. A symptom of another finding
    it is after 300 steps.

    **Why it matters.** Nothing has been learned. Why is not known here: when another finding
    explains it, it stands below that one.

    **When it is wrong.** Targets that cannot be predicted from these inputs. Tasks that stand for
    thousands of steps before they fall (parities, modular sums).

    **What to try.** Learn one batch by heart: a network that can't has a fault, one that can has a
    task too hard or labels that do not belong to their inputs. `steadygrad check` looks closer.

    **References.** rasbt/deeplearning-models #76 (2.303 = ln 10 for five reasons).
    """
    course = course_of(record)
    if not course.ill or course.steps < least:
        return
    fails = course.state == "fails"
    long = fails and course.steps >= steps
    yield Finding(
        Severity.risk if long else Severity.note,
        f"in {course.steps} steps {course.words}{': the cause is not known' if fails else ''}.",
        ("loss",),
        {"loss": course.end, "start": course.start, "constant": course.constant},
        confidence="likely" if long else "possible",
        try_next=(Advice("learn-one-batch"),),
        magnitude=1.0,
    )
