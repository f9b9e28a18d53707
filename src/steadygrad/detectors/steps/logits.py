"""Attention whose logits grow: queries and keys that grow while values do not."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from steadygrad.core.finding import Advice, Finding, Severity, detector
from steadygrad.core.record import Record, Site
from steadygrad.detectors.steps.course import course_of
from steadygrad.detectors.words import layers

QUERY_OR_KEY = re.compile(r"(^|[._])(q|k|query|key|q_proj|k_proj|wq|wk|to_q|to_k)\.weight$")
VALUE = re.compile(r"(^|[._])(v|value|v_proj|wv|to_v)\.weight$")
Floats = NDArray[np.float64]


@detector("G113", "exploding-logits", needs=("logit",), explains=("G108", "G411", "G003"))
def exploding_logits(
    record: Record, *, limit: float = 100.0, growth: float = 2.0, samples: int = 5
) -> Iterator[Finding]:
    """Attention logits that have grown so large that the softmax picks one position only.

    **What it looks at.** The largest logit of each attention over at least `samples` = 5 sampled
    steps: its median over the last third is above `limit` = 100 and `growth` = 2 times that of the
    first three (both chosen by us: healthy runs stay below 50). It is a risk when the loss gives no
    sign of learning, or the weights of queries and keys grew by `growth` while those of values
    did not; else a note.

    **Why it matters.** It comes before the spikes and the divergence: in one run the norms of Q and
    K went from 18.8 to 57 while V's went from 17 to 20, and the run died.

    **When it is wrong.** A task that wants hard attention has large logits and is well.

    **What to try.** QK-norm; a soft cap on logits; a smaller lr; a smaller weight decay is not it.

    **References.** Dehghani 2023 (ViT-22B), section 2; Wortsman 2023, section 3.1; Zhai 2023.
    """
    sites = record.sites_of("output")
    read = record.series("logit", "output")
    read = read[np.isfinite(read).any(axis=1)]
    if len(read) < samples:
        return
    first, last = _ends(read)
    ill = [p for p in range(len(sites)) if last[p] > limit and last[p] > growth * first[p]]
    if not ill:
        return
    course = course_of(record)
    queries, values = (_growth(record, pattern) for pattern in (QUERY_OR_KEY, VALUE))
    leads = queries > growth and not values > queries / growth
    worst = max(ill, key=lambda place: last[place])
    names = tuple(sites[place].name for place in ill)
    yield Finding(
        Severity.risk if leads or course.ill else Severity.note,
        f"the logits of {layers(names)} grew from {first[worst]:.3g} to {last[worst]:.3g}: their "
        "softmax picks one position.",
        names,
        {"logit": float(last[worst]), "queries_grew": queries, "values_grew": values},
        confidence="likely" if leads or course.ill else "possible",
        try_next=(Advice("qk-norm"), Advice("lower-lr")),
        magnitude=float(np.log10(last[worst])),
    )


def _ends(values: Floats) -> tuple[Floats, Floats]:
    """Medians of the first three and of the last third of the readings: [sites]."""
    first, last = np.nan_to_num(values[:3]), np.nan_to_num(values[-max(2, len(values) // 3) :])
    return np.median(first, axis=0), np.median(last, axis=0)


def _growth(record: Record, pattern: re.Pattern[str]) -> float:
    """How many times the norms of the weights with such names grew; NaN without any."""
    sites: list[Site] = record.sites_of("weight")
    mine = [place for place, site in enumerate(sites) if pattern.search(site.name)]
    read = record.series("weight", "weight")[:, mine]
    read = read[np.isfinite(read).all(axis=1)] if mine else read[:0]
    return float(np.median(read[-1] / read[0])) if len(read) >= 2 else float("nan")
