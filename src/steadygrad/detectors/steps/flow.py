"""Gradients over many steps: growing by decades, or too small to move the first layers."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from steadygrad.core.finding import Advice, Finding, Severity, detector
from steadygrad.core.record import Record
from steadygrad.detectors.steps.course import Course, course_of
from steadygrad.detectors.steps.moves import Floats, Moves, middle, moves_of, owner
from steadygrad.detectors.words import layers, times

HUGE = 1e38  # stands for infinity in a logarithm


@detector(
    "G101",
    "exploding-gradient",
    needs=("norm", "loss"),
    explains=("G003", "G004", "G006", "G108", "G411"),
)
def exploding_gradient(
    record: Record, *, decades: float = 2.0, rise: float = 10.0
) -> Iterator[Finding]:
    """A gradient that grows by decades and takes the loss with it.

    **What it looks at.** The norm of all gradients before clipping: in each of the last steps (a
    tenth of the run, at least three) it is more than `decades` = 2 above its median at the start,
    and in each of them the loss is more than `rise` = 10 times its first size away from it, upward
    (chosen by us: no healthy run that we know does both; a norm alone grows by a decade or two
    where zero-initialised blocks open, or late in training). Runs of fewer than eight steps are not
    judged.

    **Why it matters.** The next thing is infinity.

    **When it is wrong.** A loss that is meant to grow, with its gradient, by decades.

    **What to try.** When it begins at the start: a smaller lr or warm-up, tried in a trial
    (`steadygrad check`). When it begins late: what changed there, in the data or the lr. Clipping
    holds it off where single batches do it.

    **References.** Pascanu 2013, section 2.
    """
    norm, loss = _rows(record)
    if len(norm) < 8:
        return
    head, tail = slice(0, max(3, len(norm) // 20)), slice(-max(3, len(norm) // 10), None)
    growth = np.log10(norm[tail]) - math.log10(max(float(np.median(norm[head])), 1e-38))
    first = float(np.median(loss[head]))
    away = loss[tail] - first
    if not (growth > decades).all() or not (away > rise * abs(first)).all():
        return
    middle_growth = float(np.median(growth))
    yield Finding(
        Severity.broken,
        f"the gradient grew {times(middle_growth)} since the start, and the loss went from "
        f"{first:.3g} to {loss[-1]:.3g}.",
        ("optimizer",),
        {"decades": middle_growth, "loss": float(loss[-1])},
        try_next=(
            Advice("clip-norm", "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)"),
            Advice("lower-lr"),
        ),
        steps=(int(record.steps[0]), int(record.steps[-1])),
        magnitude=middle_growth,
    )


def _rows(record: Record) -> tuple[Floats, Floats]:
    """Norm and loss of the first optimizer, up to the first step that is not finite."""
    norm, loss = record.series("norm", "step"), record.series("loss", "step")
    if not norm.shape[1]:
        return np.array([]), np.array([])
    known = ~np.isnan(norm[:, 0]) & ~np.isnan(loss[:, 0])
    norm, loss = norm[known, 0], loss[known, 0]
    good = np.isfinite(norm) & np.isfinite(loss)
    end = len(good) if good.all() else int(np.argmin(good))
    return np.clip(norm[:end], 1e-38, HUGE), np.clip(loss[:end], -HUGE, HUGE)


@detector("G102", "vanishing-gradient", needs=("update", "grad", "loss"), explains=("G402", "G411"))
def vanishing_gradient(
    record: Record, *, faint: float = 1e-4, decades: float = 2.0
) -> Iterator[Finding]:
    """First layers on which the loss hardly depends, in a network that does not learn.

    **What it looks at.** For each weight matrix gradient times weight over loss: by what share the
    loss would change, to first order, if the weight were doubled. It has no unit, so that neither
    a scaled loss nor a scaled weight moves it. When it is below `faint` = 1e-4 for the first
    matrix in forward order, as the median over the later half of the sampled steps, and the loss is
    no better than a constant prediction, that is a risk. Where nobody knows what a constant costs,
    it must also be `decades` = 2 below the network's last third, and is possible only; where one
    knows, it must be half of that below, unless nothing in the network has a gradient that counts
    (all chosen by us). A gradient of exactly zero has another cause, and is not looked at.

    **Why it matters.** The first layers stay as they were drawn, the others see what these make.

    **When it is wrong.** At labels that cannot be predicted nothing has a gradient for long; there
    all layers are alike.

    **What to try.** Residual connections, norm layers, Kaiming's init for ReLU (nn.Linear's default
    is a gain of 1/sqrt(3)); `steadygrad check` says which layer loses it.

    **References.** Hochreiter 1991; Glorot 2010; He 2015 (arXiv 1502.01852).
    """
    course, moves = course_of(record), moves_of(record)
    if not course.ill or moves is None or len(moves.sites) < 3:
        return
    zero = {*(record.facts.get("wiring") or {}).get("zero", ())}
    places = sorted(range(len(moves.sites)), key=lambda place: moves.sites[place].depth)
    order = [place for place in places if moves.sites[place].name not in zero]
    if len(order) < 3:
        return
    felt = _felt(moves, course)[order]
    last = float(np.nan_to_num(felt)[-max(1, len(felt) // 3) :].max())
    below = math.log10(max(last, 1e-38) / max(felt[0], 1e-38)) if felt[0] > 0 else math.nan
    least = decades if course.state == "stands" else decades / 2
    nowhere = course.state == "fails" and last < faint**2
    if not 0 < felt[0] < faint or not (below >= least or nowhere):
        return
    names = tuple(owner(moves.sites[p].name) for p, f in zip(order, felt, strict=True) if f < faint)
    yield _vanishing(course, names, float(felt[0]), below)


def _felt(moves: Moves, course: Course) -> NDArray[np.float64]:
    """Gradient times weight over loss: [weights]."""
    size = course.constant if math.isfinite(course.constant) else course.scale
    return middle((moves.grad * moves.weight)[moves.late]) / size


def _vanishing(course: Course, names: tuple[str, ...], felt: float, below: float) -> Finding:
    sure = course.state == "fails"
    return Finding(
        Severity.risk if sure else Severity.note,
        f"doubling the weights of {names[0]} would change the loss by {felt:.1g} of itself, "
        f"{times(below)} less than those of the last layers ({layers(names)} are as faint); "
        f"{course.words}.",
        names,
        {"felt": felt, "decades_below_last": below, "loss": course.end},
        confidence="likely" if sure else "possible",
        try_next=(Advice("add-residual", "x = x + layer(x)"), Advice("kaiming-init")),
        magnitude=-math.log10(felt),
    )
