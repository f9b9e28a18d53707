"""Flow: gradient and signal that explode or vanish over the depth, whatever the cause."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from steadygrad.core.finding import Advice, Finding, Severity, detector
from steadygrad.core.record import Record
from steadygrad.detectors.depth import Depth, adaptive, depth_of, trend_of
from steadygrad.detectors.initialisation import evidence
from steadygrad.detectors.words import layers, times


@detector(
    "G101", "exploding-gradient", needs=("flow", "gain"), explains=("G103", "G006", "G401", "G403")
)
def exploding_gradient(record: Record) -> Iterator[Finding]:
    """A gradient that grows on its way from the output to the first layer.

    What it looks at: the gradient's L2 norm at every point that all paths from output to input
    pass, read from one backward pass renormalised at each, so that no depth overflows. More than 2
    decades of growth beyond the band of a single draw are a risk. When weights or residual blocks
    carry it, that is the finding and this is its symptom. A growth through norm layers without
    skips is reported here: BatchNorm centres, so each layer multiplies the gradient by
    sqrt(E f'^2 / Var f), 1.21 for ReLU, and rescaling weights does not change that.

    Why it matters: the lower layers need a step size thousands of times smaller than the upper.

    When it is wrong: optimizers that divide each gradient by its own size bear a few decades.

    What to try: residual connections around the norms; orthogonal weights with the activation's
    gain instead of the norms; a nearly linear activation.

    References: Yang 2019 (arXiv 1902.08129); Philipp 2018 (arXiv 1712.05577).
    """
    trend = trend_of(record)
    if trend is not None and trend.decades > 0:
        names = trend.depth.named(trend.places)
        norm = trend.cause == "norm"
        why = (
            "norm layers without skip connections: each centres and rescales, and no weight scale "
            f"changes that ({trend.depth.kind})"
            if norm
            else f"over {layers(names)} ({trend.depth.kind})"
        )
        says = (
            f"the gradient grows {trend.factor:.3g} times per layer, {trend.decades:+.1f} decades "
            f"from the output to the input: {why}"
        )
        yield Finding(
            trend.severity,
            says,
            names,
            evidence(trend.depth, trend),
            try_next=(
                Advice("add-residual", "x = x + layer(x)  # around each norm and its layer"),
            ),
            magnitude=abs(trend.decades),
        )
    yield from _odd_units(record, up=True)


@detector("G102", "vanishing-gradient", needs=("flow", "gain"), explains=("G104", "G105"))
def vanishing_gradient(record: Record) -> Iterator[Finding]:
    """A gradient that dies on its way from the output to the first layer.

    What it looks at: as exploding-gradient, in the other direction: more than 3.3 decades lost
    beyond the band of a single draw (5 under optimizers that normalise the gradient). When weights
    or activations carry the loss, that is the finding and this is its symptom. Also one unit that
    takes 2 decades or more although its weights look like their siblings'.

    Why it matters: the lower layers stay as they were drawn.

    When it is wrong: pooling divides the norm by design and is left out; a readout that looks at
    one of many positions passes gradient to that one only.

    What to try: see the cause; without one, residual connections or norm layers.

    References: Hochreiter 1991; Glorot 2010; He 2015 (arXiv 1502.01852).
    """
    trend = trend_of(record)
    if trend is not None and trend.decades < 0:
        names = trend.depth.named(trend.places)
        says = (
            f"the gradient keeps {trend.factor:.3g} per layer over {layers(names)}, "
            f"{trend.decades:+.1f} decades from the output to the input ({trend.depth.kind})"
        )
        advice = Advice("add-residual", "x = x + layer(x)")
        numbers, size = evidence(trend.depth, trend), abs(trend.decades)
        yield Finding(trend.severity, says, names, numbers, try_next=(advice,), magnitude=size)
    yield from _odd_units(record, up=False)


def _odd_units(record: Record, *, up: bool, least: float = 2.0) -> Iterator[Finding]:
    """Units of the trunk that change the gradient by far more than the trend; not the first."""
    depth = depth_of(record)
    if depth is None:
        return
    for place in depth.odd:
        away = float(depth.gain[place] - depth.trend)
        own = away - _rescaling(depth, place)
        far = min(abs(away), abs(float(depth.gain[place])), abs(own))
        if place == 0 or depth.joins[place] or (away > 0) != up or far < least:
            continue
        site = depth.sites[place]
        name = site.name or site.kind
        size = abs(away) if math.isfinite(away) else 9.0
        word = (
            "lets no gradient pass" if away == -math.inf else f"changes it by {away:+.1f} decades"
        )
        says = f"{name} {word}, against {depth.trend:+.2f} of the other units"
        severity = Severity.broken if size >= 5 else Severity.risk
        numbers = {"unit_decades": away, "trend_decades": depth.trend}
        yield Finding(severity, says, (site.name,), numbers, magnitude=size)


def _rescaling(depth: Depth, place: int) -> float:
    """What a unit does by giving signal and gradient another scale, as norms and losses do."""
    scale = float(depth.parts["norm"][place] + depth.parts["other"][place])
    return scale if math.isfinite(scale) else 0.0


@detector("G103", "exploding-signal", needs=("flow",), explains=("G003",))
def exploding_signal(record: Record, *, risk: float = 3.0) -> Iterator[Finding]:
    """An output that is thousands of times larger than a network's output should be.

    What it looks at: the root mean square of the model's output for a real batch, and of every unit
    on the way. More than 10**3 at the output is a risk (chosen by us: heads of 25 healthy networks
    lie between 1e-2 and 1e2 before the first step), a tenth of that a note.

    Why it matters: losses start thousands of times above a constant predictor's, exponentials
    overflow, softmax and sigmoid saturate.

    When it is wrong: outputs in a large unit of the user's own, with targets as large.

    What to try: see the cause; unscaled inputs or targets, weights too large, unscaled residuals.
    """
    size = float(record.facts["flow"]["out_log_rms"])
    depth = depth_of(record)
    if depth is None or not math.isfinite(size) or size < risk - 1:
        return
    # opened, the output is not the network's own; where no module was called it is the loss
    if record.facts["flow"].get("opened") or record.facts["flow"].get("of_loss"):
        return
    grown = size - float(np.nanmin(depth.log_rms, initial=size))
    if grown < 1.0:
        return
    severity = Severity.risk if size >= risk else Severity.note
    says = f"the output's root mean square is 1e{size:.1f}, grown {grown:.1f} decades on the way"
    first = int(np.argmax(depth.log_rms > size - grown / 2))
    yield Finding(severity, says, depth.named([first]), {"output_decades": size}, magnitude=size)


@detector("G104", "vanishing-signal", needs=("flow",), explains=())
def vanishing_signal(record: Record, *, risk: float = -6.0) -> Iterator[Finding]:
    """An output that is nothing but zeros or rounding, because the signal died on the way.

    What it looks at: the root mean square of the output (zero-by-design parameters opened): below
    10**-6, the resolution of float32 beside a bias of one, is a risk, exactly zero is broken. A
    loss may be as small as it likes: where only functions were called, nothing is said.

    Why it matters: the prediction is the same for every sample.

    When it is wrong: outputs in a tiny unit of the user's own, with targets as tiny.

    What to try: see the cause; weights too small, a dead layer.
    """
    size = float(record.facts["flow"]["out_log_rms"])
    depth = depth_of(record)
    if depth is None or math.isnan(size) or size > risk or record.facts["flow"].get("of_loss"):
        return
    small = np.flatnonzero(depth.log_rms < risk)
    severity = Severity.risk if math.isfinite(size) else Severity.broken
    amount = f"has a root mean square of 1e{size:.1f}" if math.isfinite(size) else "is exactly zero"
    where = depth.named([int(small[0])]) if len(small) else ()
    numbers = {"output_decades": size}
    yield Finding(severity, f"the output {amount}", where, numbers, magnitude=min(-size, 99.0))


@detector("G105", "collapsed-signal", needs=("flow",), explains=())
def collapsed_signal(record: Record) -> Iterator[Finding]:
    """An output that looks alike for all samples although the inputs differ.

    What it looks at: how different neighbouring samples are, |h[1:] - h[:-1]| / (sqrt(2) |h|), at
    the output against the input. A thousandth left is a risk under plain gradient descent, 10**-4.5
    under optimizers that normalise the gradient: measured on plain networks of growing depth,
    the loss there stays at that of a constant predictor.

    Why it matters: what a network cannot tell apart it cannot learn to separate.

    When it is wrong: inputs that hardly differ in the batch itself; a large output bias by design.

    What to try: see the cause; weights too small under biases, saturation, deep post-norm stacks.

    References: Schoenholz 2017 (arXiv 1611.01232); Dong 2021 (arXiv 2103.03404) for attention.
    """
    depth, risk = depth_of(record), -4.5 if adaptive(record) else -3.0
    if depth is None:
        return
    flow = record.facts["flow"]
    pairs = {
        "samples": (float(flow["spread_in"]), float(flow["spread_out"]), depth.spread),
        "positions of a sample": (_first(flow["within_in"], depth.within), *_last(depth.within)),
    }
    for what, (entering, leaving, along) in pairs.items():
        if not entering > 1e-3 or math.isnan(leaving):
            continue
        left = math.log10(leaving / entering) if leaving > 0 else -16.0
        if left > risk + 1:
            continue
        lost = np.flatnonzero(along < 0.1 * entering)
        where = depth.named([int(lost[0])]) if len(lost) else ()
        severity = Severity.broken if left < -6 else Severity.risk if left < risk else Severity.note
        says = (
            f"{what} that differ by {entering:.2g} of their size at the input differ by "
            f"{leaving:.2g} at the output, {times(left)} less"
        )
        numbers = {"collapse_decades": left, "cosine": 1 - leaving**2}
        yield Finding(severity, says, where, numbers, magnitude=-left)
        return


def _first(given: float, along: np.ndarray) -> float:
    """Reading at the input; of a model that cuts its input into positions itself, the first."""
    read = along[~np.isnan(along)]
    return float(read[0]) if math.isnan(given) and len(read) else float(given)


def _last(along: np.ndarray) -> tuple[float, np.ndarray]:
    """Last reading along the depth, since a classifier pools positions in the end; and all."""
    read = along[~np.isnan(along)]
    return (float(read[-1]) if len(read) else math.nan), along
