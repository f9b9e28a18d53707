"""Activations over many steps: units that never fire, and curves used where they are flat."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from steadygrad.core.finding import Advice, Finding, Severity, detector
from steadygrad.core.record import Record
from steadygrad.detectors.steps.course import Course, course_of
from steadygrad.detectors.steps.moves import is_matrix, middle
from steadygrad.detectors.words import layers

CUTS = re.compile(r"^relu6?$", re.IGNORECASE)  # exactly zero below zero
BOUNDED = re.compile(r"tanh|sigmoid", re.IGNORECASE)
Floats = NDArray[np.float64]


@detector(
    "G301", "dead-relu", needs=("dead", "loss"), explains=("G102", "G302", "G402", "G411", "G501")
)
def dead_relu(record: Record, *, share: float = 0.9, samples: int = 5) -> Iterator[Finding]:
    """A ReLU of which nearly all units have not fired in any step that was sampled.

    **What it looks at.** The share of units that were positive in no sample of all sampled steps,
    in at least `samples` = 5 of them; or a whole layer that put out nothing but zeros in the last
    three. A dead layer that did not kill the training is a note. Where the loss does not fall,
    `share` = 90 % is a risk, and a whole layer is broken (chosen by us: at a healthy start 22 % of
    the units of 20 Kaiming layers and 35 % of 50 are dead in one batch, 52 % of 20 layers of
    nn.Linear's default). The first such layer in forward order is named: what comes behind it looks
    dead as well.

    **Why it matters.** No gradient passes a unit that is zero for every sample; it stays dead.

    **When it is wrong.** Experts and gates that are meant to be shut; sparse codes.

    **What to try.** A smaller lr or warm-up when one large step did it; zero the biases before it;
    LeakyReLU.

    **References.** Lu 2019 (arXiv 1903.06733); He 2015 (arXiv 1502.01852) for PReLU.
    """
    sites, course = record.sites_of("output"), course_of(record)
    dead, whole = _dead(record, samples), _whole(record)
    ill = [place for place, site in enumerate(sites) if CUTS.match(site.kind)]
    ill = [place for place in ill if dead[place] >= share or whole[place]]
    if (
        _without_weights(record)
        or not ill
        or (course.state == "unknown" and not any(whole[place] for place in ill))
    ):
        return
    first = min(ill, key=lambda place: sites[place].depth)
    amount = "nothing but zeros left" if whole[first] else f"{dead[first]:.0%} of the units of"
    ends = f"{sites[first].name}" + ("" if whole[first] else " have not fired in any sampled step")
    yield Finding(
        _severity(course, whole=bool(whole[first])),
        f"{amount} {ends}: no gradient passes them; {course.words}.",
        (sites[first].name,),
        {"dead": float(dead[first]), "layers": float(len(ill)), "loss": course.end},
        confidence="measured" if course.ill else "possible",
        try_next=(Advice("revive"), Advice("leaky-relu", "nn.LeakyReLU(0.01)")),
        magnitude=9.0,
    )


def _without_weights(record: Record) -> bool:
    """Whether all weight matrices are zero, which explains zeros better than a dead unit."""
    sizes = record.series("weight", "weight")
    matrices = [place for place, site in enumerate(record.sites_of("weight")) if is_matrix(site)]
    read = sizes[np.isfinite(sizes).any(axis=1)][:, matrices]
    return bool(read.size and (read[-1] == 0).all())


def _dead(record: Record, samples: int) -> Floats:
    """Share of dead units in the end: [outputs]; 0 where it was read in fewer steps."""
    read = record.series("dead", "output")
    many = np.isfinite(read).sum(axis=0) >= samples
    filled = np.array([_last(column) for column in read.T])
    return np.where(many, filled, 0.0)


def _last(column: Floats) -> float:
    known = column[np.isfinite(column)]
    return float(known[-1]) if len(known) else 0.0


def _whole(record: Record, *, steps: int = 3) -> NDArray[np.bool_]:
    """Mark the outputs that were zero everywhere in the last sampled steps."""
    largest = record.series("max", "output")
    tails = [column[np.isfinite(column)][-steps:] for column in largest.T]
    return np.array([len(tail) == steps and bool((tail <= 0).all()) for tail in tails], dtype=bool)


def _severity(course: Course, *, whole: bool) -> Severity:
    if not course.ill:
        return Severity.note
    return Severity.broken if whole else Severity.risk


@detector("G302", "saturated-activation", needs=("saturated", "loss"), explains=("G102", "G411"))
def saturated_activation(record: Record, *, share: float = 0.8) -> Iterator[Finding]:
    """A tanh or sigmoid inside the network that is used nearly everywhere where it is flat.

    **What it looks at.** The share of elements of a tanh or sigmoid where it is flat (|tanh| > 0.97
    or a sigmoid within 0.03 of its ends), over the later half of the sampled steps: at least
    `share` = 0.8 (chosen by us) while the loss gives no sign of learning, or falls and is still
    more than twice a constant prediction's. The last output is left out: a confident prediction is
    meant to be at the end of its range.

    **Why it matters.** Little gradient passes; the layers below hardly move.

    **When it is wrong.** Gates that are meant to be open or shut, in a network that does not learn
    for another reason.

    **What to try.** A norm layer before it; smaller weights; a smaller lr when it came with time.

    **References.** Glorot 2010, section 3; Philipp 2018.
    """
    sites, course = record.sites_of("output"), course_of(record)
    read = record.series("saturated", "output")
    read = read[np.isfinite(read).any(axis=1)]
    if not (course.ill or course.worse) or len(read) < 3:
        return
    typical = middle(read[len(read) // 2 :])
    deepest = max(site.depth for site in sites)
    bounded = [p for p, s in enumerate(sites) if BOUNDED.search(s.kind) and s.depth < deepest]
    flat = sorted((p for p in bounded if typical[p] >= share), key=lambda p: sites[p].depth)
    if not flat:
        return
    names = tuple(sites[place].name for place in flat)
    yield Finding(
        Severity.risk,
        f"{layers(names)} are flat at {min(typical[place] for place in flat):.0%} of their elements"
        f" or more and pass hardly any gradient; {course.words}.",
        names,
        {"saturated": float(typical[flat[0]]), "loss": course.end},
        confidence="likely",
        try_next=(Advice("normalise", "nn.LayerNorm(width)  # before the activation"),),
        magnitude=3.0,
    )
