"""The size of steps over many steps: too large, too small, or rounded away."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from steadygrad.core.finding import Advice, Finding, Severity, detector
from steadygrad.core.record import Record
from steadygrad.detectors.steps.course import course_of
from steadygrad.detectors.steps.moves import middle, moves_of, owner

HALF = ("float16", "bfloat16")
WIDE = "model.float()  # and torch.autocast(device_type, torch.bfloat16), or float16 and GradScaler"


@detector(
    "G412",
    "large-update",
    needs=("update", "loss"),
    explains=("G101", "G102", "G108", "G113", "G301", "G302", "G411", "G002", "G003", "G004"),
)
def large_update(
    record: Record, *, ratio: float = 0.1, whole: float = 1.0, samples: int = 3
) -> Iterator[Finding]:
    """Steps that move weights by a large part of their size, in a run that does not learn.

    **What it looks at.** Update over weight of the weight matrices, the median over them: a sampled
    step that moves them by `whole` = 1 time their size or more, so that nothing of their
    initialisation is left; or at least `samples` = 3 sampled steps above `ratio` = 0.1 from the
    fourth step on, since the first steps of adaptive optimizers are the largest (customary is 1e-3;
    chosen by us). Then the consequence: the loss gives no sign of learning, or is not finite any
    more; where steps are not of `whole` size, they are then only a possible cause. Weights that
    start at zero have no size to compare with, and are left out.

    **Why it matters.** What ten such steps have made of a weight has nothing to do with what it
    was: the network is drawn anew, out of proportion, every ten steps.

    **When it is wrong.** Very small networks; reinforcement learning, whose loss need not fall.

    **What to try.** A smaller lr, or warm-up, in a trial: `steadygrad check`.

    **References.** You 2017 (LARS), section 4; Karpathy's 1e-3.
    """
    course, moves = course_of(record), moves_of(record)
    broke = bool(np.isinf(record.series("loss", "step")).any())
    if moves is None or not (course.ill or broke):
        return
    ratios = np.where(moves.weight[0] > 0, moves.ratio, np.nan)
    sizes = middle(ratios.T)
    large = sizes >= whole
    sure = course.ill or bool(large.any())
    if not large.any():
        large = (moves.steps > 3) & (sizes > ratio)
        if large.sum() < samples:
            return
    typical = float(np.median(sizes[large]))
    worst = np.argsort(-np.nan_to_num(middle(ratios[large])))[:5]
    yield Finding(
        Severity.risk,
        f"{int(large.sum())} of {len(sizes)} sampled steps moved the weights by {typical:.2g} of "
        f"their size, first in step {int(moves.steps[large][0])}; "
        f"{'the loss is no longer finite' if broke else course.words}.",
        tuple(owner(moves.sites[place].name) for place in worst),
        {"ratio": typical, "loss": course.end, "start": course.start},
        confidence="likely" if sure else "possible",
        try_next=(Advice("lower-lr"), Advice("warm-up")),
        steps=(int(moves.steps[large][0]), int(moves.steps[large][-1])),
        magnitude=2.0 + math.log10(typical),
    )


@detector("G402", "lr-too-low", needs=("update", "grad", "loss"), explains=("G411",))
def lr_too_low(record: Record, *, crawl: float = 1e-5, steps: int = 100) -> Iterator[Finding]:
    """Steps that cannot lower the loss, because they are too small for their gradients.

    **What it looks at.** A bound rather than a ratio: to first order a step lowers the loss by no
    more than the sum over the weights of gradient norm times update norm (Cauchy and Schwarz). When
    that is less than `crawl` = 1e-5 of the loss in each of at least `steps` = 100 steps, ten
    thousand of them take off a tenth at the very most; when steps of the customary size, 1e-3 of
    each weight, along these same gradients could take off a hundred times more, the gradients are
    there and the steps are what is small (limits chosen by us). It is a risk where the loss is no
    better than a constant prediction, and only possible where nobody knows what that costs: a run
    that has converged looks the same. An lr that is still rising is left alone, and the largest
    steps of a schedule count, not the last.

    **Why it matters.** The run looks like one that cannot learn.

    **When it is wrong.** Small steps may be meant, to measure something.

    **What to try.** A larger lr, in a trial: SGD needs 10 to 1000 times Adam's.

    **References.** An update of about 1e-3 of the weight per step is customary (Karpathy).
    """
    course, moves = course_of(record), moves_of(record)
    if not course.ill or moves is None or course.steps < steps:
        return
    size = course.constant if math.isfinite(course.constant) else course.scale
    reach = float(np.nansum(moves.grad * moves.update, axis=1).max()) / size
    could = 1e-3 * float(np.median(np.nansum(moves.grad * moves.weight, axis=1))) / size
    if not reach < crawl or not could > 100 * max(reach, crawl / 1000):
        return
    sure = course.state == "fails"
    yield Finding(
        Severity.risk if sure else Severity.note,
        f"no sampled step could lower the loss by more than {reach:.1g} of itself; steps of a "
        f"thousandth of each weight could by {could:.1g}; {course.words}.",
        ("lr",),
        {"reach": reach, "could": could, "ratio": float(np.median(np.nan_to_num(moves.ratio)))},
        confidence="likely" if sure else "possible",
        ruled_out=("the gradient: it is large enough",),
        try_next=(Advice("higher-lr"),),
        magnitude=-math.log10(max(reach, 1e-30)) - 5,
    )


@detector("G405", "swallowed-update", needs=("moved", "loss"), explains=("G402", "G411", "G501"))
def swallowed_update(record: Record, *, most: float = 0.1) -> Iterator[Finding]:
    """Half-precision weights that round most of their steps away.

    **What it looks at.** Of the elements with a gradient, the share that a sampled step changed,
    where the optimizer holds weights in float16 or bfloat16 only: less than `most` = 0.1 for the
    median weight matrix in nine of ten sampled steps whose lr was at least half of the largest. It
    is broken when the loss gives no sign of learning, and a note when it falls, since stochastic
    rounding moves few elements at a time by design.

    **Why it matters.** Gradients are healthy, nothing is NaN, and the weights stay: an update below
    half the spacing of numbers (2^-9 of the weight in bfloat16) is lost, every time.

    **When it is wrong.** Optimizers with Kahan summation keep what a step loses for later.

    **What to try.** float32 weights and autocast; an optimizer with stochastic rounding or Kahan
    summation; a larger lr.

    **References.** Zamirai 2020 (bfloat16 training, section 3); CLIP #40; nanoGPT #137.
    """
    kinds = [kind for one in record.facts.get("optimizers") or () for kind in one["dtypes"]]
    if not kinds or not all(any(half in kind for half in HALF) for kind in kinds):
        return
    course, typical = course_of(record), _moved(record)
    if len(typical) < 3 or not float(np.mean(typical < most)) >= 0.9 or course.state == "unknown":
        return
    share = float(np.median(typical))
    yield Finding(
        Severity.broken if course.ill else Severity.note,
        f"a typical step changes {share:.1%} of the weights that have a gradient and rounds the "
        f"others away ({', '.join(sorted({*kinds}))}); {course.words}.",
        ("optimizer",),
        {"moved": share, "loss": course.end},
        confidence="measured" if course.ill else "possible",
        ruled_out=("the gradient: it is finite and not zero there",),
        try_next=(Advice("float32-weights", WIDE),),
        magnitude=6.0,
    )


def _moved(record: Record) -> np.ndarray:
    """Share of moved elements of the median weight, in the sampled steps with a full lr."""
    moved = record.series("moved", "weight")
    rates = np.nan_to_num(record.series("lr", "step")).max(axis=1, initial=0.0)
    full = (rates >= 0.5 * rates.max()) & np.isfinite(moved).any(axis=1)
    full &= ~(record.series("skipped", "step") > 0).any(axis=1)
    return middle(moved[full].T) if full.any() else np.array([])
