"""Initialisation: weights too small, too large, or residual branches that add up."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from steadygrad.core.finding import Advice, Finding, Severity, detector
from steadygrad.core.record import Record
from steadygrad.detectors.depth import Depth, OddWeight, Trend, depth_of, odd_weights, trend_of
from steadygrad.detectors.words import layers, patch_multiply, times


@detector(
    "G201",
    "weak-init",
    needs=("weight_gain", "flow"),
    explains=("G102", "G104", "G105", "G107", "G401", "G402", "G403", "G606"),
)
def weak_init(record: Record) -> Iterator[Finding]:
    """Weights so small that each layer passes on only part of the gradient, or one layer does.

    What it looks at: a random gradient is sent from the output to the input and its L2 norm noted
    at every point that all paths pass. In theory a layer keeps sqrt(mean(W^2) fan_in E f'^2) of it
    (He 2015, section 2.2). A trend is reported when the decades lost over the depth, beyond the
    band of a single draw (Hanin & Nica 2018), exceed 3.3 (5 under optimizers that normalise the
    gradient), and the weights, not the activation or a norm, account for it. A single layer is
    reported when its sqrt(mean(W^2) fan_in) is 0.8 decades below its siblings' (layers of the same
    name but for digits) and more than 6 of their median absolute deviations.

    Why it matters: below about 3 decades plain gradient descent stops to learn in the lower layers;
    below 7 the signal drowns in the rounding of float32. PyTorch's default for nn.Linear and conv
    layers, Var(W) = 1 / (3 fan_in), keeps 0.41 per ReLU layer.

    When it is wrong: Adam trains moderately deep networks in spite of it. A last layer that starts
    small is a custom, and a note. Directly before a norm
    layer the scale of weights cancels (only their effective learning rate changes): a note.

    What to try: multiply the weights by the printed factor, `nn.init.kaiming_normal_`, orthogonal
    weights with the activation's gain; residual connections or norm layers for very deep stacks.

    References: He 2015 (arXiv 1502.01852); Glorot 2010; Hanin & Nica 2018 (arXiv 1812.05994).
    """
    trend = trend_of(record)
    if trend is not None and trend.cause == "weight" and trend.decades < 0:
        yield _scale_finding(record, trend)
    yield from _odd_findings(record, below=True)


@detector(
    "G202",
    "strong-init",
    needs=("weight_gain", "flow"),
    explains=("G101", "G103", "G105", "G302", "G003", "G006", "G007", "G106", "G401", "G403"),
)
def strong_init(record: Record) -> Iterator[Finding]:
    """Weights so large that signal and gradient grow from layer to layer, or at one layer.

    What it looks at: as weak-init, in the other direction: more than 2 decades of growth beyond the
    band of a single draw, carried by the weights; or one layer 0.8 decades above its siblings; or a
    bias that is 5 times larger than the signal it is added to while its siblings' are not.

    Why it matters: outputs and gradients overflow or need a learning rate that stalls all other
    layers; bounded activations saturate; the map becomes chaotic (Poole 2016), so that neighbouring
    inputs get unrelated gradients.

    When it is wrong: directly before a norm layer the scale cancels; that is reported as a note.

    What to try: multiply the weights by the printed factor; for saturating activations initialise
    anew with their gain; norm layers.

    References: He 2015 (arXiv 1502.01852); Poole 2016 (arXiv 1606.05340).
    """
    trend = trend_of(record)
    if trend is not None and trend.cause == "weight" and trend.decades > 0:
        yield _scale_finding(record, trend)
    yield from _odd_findings(record, below=False)
    yield from _odd_biases(record)
    yield from _odd_shifts(record)


@detector("G205", "growing-residual", needs=("flow",), explains=("G101", "G103", "G401", "G403"))
def growing_residual(record: Record) -> Iterator[Finding]:
    """Residual blocks that each multiply signal and gradient, because nothing scales the branch.

    What it looks at: whether more than 60 % of a growth of over 2 decades happens across residual
    blocks. A block x + F(x) with a branch of gain r multiplies the squared norm by 1 + r, thus 2^L
    over L blocks with He initialisation; with a norm at the start of the branch it only adds.

    Why it matters: after 40 blocks the output is a million times the input.

    When it is wrong: a norm behind the last block undoes the scale of the signal, yet not that
    later blocks contribute less and less to it.

    What to try: scale each branch by 1 / sqrt(blocks), or start it at zero (SkipInit, ReZero,
    Fixup); or put a norm at the start of each branch.

    References: Zhang 2019, Fixup (arXiv 1901.09321); De & Smith 2020 (arXiv 2002.10444), section 3.
    """
    trend = trend_of(record)
    if trend is None or trend.cause != "residual" or trend.decades < 0:
        return
    names = trend.depth.named(trend.places)
    says = (
        f"each of {layers(names)} multiplies the gradient's norm by {trend.factor:.2f} on the way "
        f"down, {trend.decades:+.1f} decades in all: the branch is added to the skip unscaled"
    )
    scale = 1 / math.sqrt(max(1, len(names)))
    advice = Advice("scale-residual", f"x = x + {scale:.3g} * branch(x)  # 1 / sqrt(blocks)")
    start = Advice(
        "skip-init", "self.alpha = nn.Parameter(torch.zeros(()))  # x + alpha * branch(x)"
    )
    yield Finding(
        trend.severity,
        says,
        names,
        evidence(trend.depth, trend),
        try_next=(start, advice),
        magnitude=abs(trend.decades),
    )


def evidence(depth: Depth, trend: Trend) -> dict[str, float | str]:
    """Numbers that every finding about a trend shows."""
    per_nat = abs(depth.trend) * math.log(10)
    return {
        "total_decades": depth.steady,
        "factor_per_unit": trend.factor,
        "depth_scale": 1 / per_nat if per_nat else math.inf,
        "units": float(len(depth.sites)),
        "gsc": float(depth.totals["gsc"]),
        "nlc": float(depth.totals["nlc"]),
        "cosine": 1 - float(depth.totals["spread_out"]) ** 2,
        "kind": depth.kind,
    }


def _scale_finding(record: Record, trend: Trend) -> Finding:
    depth = trend.depth
    names = depth.named(trend.places)
    if depth.heavy and trend.decades > 0:
        names = _heavy_names(record) or names
    squared = _typical_scale(record, names)
    needed = _needed(depth, squared)
    multiplier = math.sqrt(needed / squared) if squared > 0 else math.nan
    says = (
        f"each of {layers(names)} {'keeps' if trend.decades < 0 else 'multiplies'} "
        f"{trend.factor:.3g}{' of' if trend.decades < 0 else ' times'} the gradient's norm "
        f"({trend.decades:+.1f} decades in all): mean(W^2) * fan_in = {squared:.3g}, "
        f"the activation needs {needed:.3g}; multiply the weights by {multiplier:.3g}"
    )
    numbers = evidence(depth, trend)
    numbers |= {"multiplier": multiplier, "weight_scale": squared, "needed": needed}
    return Finding(
        trend.severity,
        says,
        names,
        numbers,
        ruled_out=_ruled_out(depth),
        try_next=_cures(depth, patch_multiply(names, multiplier, _bare(record))),
        magnitude=abs(trend.decades),
    )


def _heavy_names(record: Record, *, least: float = 0.45) -> tuple[str, ...]:
    """Weight ops of more than twice He's scale, those inside of residual blocks too."""
    gains = record.read("weight_gain", "weight")
    sites = record.sites_of("weight")
    return tuple(dict.fromkeys(sites[i].name for i in np.flatnonzero(gains > least)))


def _needed(depth: Depth, squared: float) -> float:
    """1 / E f^2, what the activation needs; where unknown, He's 2 or what levels the trend."""
    if np.isfinite(depth.ideal).any():
        return float(10.0 ** (2 * np.nanmedian(depth.ideal)))
    return 2.0 if depth.heavy else float(squared * 10.0 ** (-2 * depth.trend))


def _typical_scale(record: Record, names: tuple[str, ...]) -> float:
    sites, gains = record.sites_of("weight"), record.read("weight_gain", "weight")
    mine = [gains[place] for place, site in enumerate(sites) if site.name in names]
    read = [gain for gain in mine if math.isfinite(gain)]
    return float(10.0 ** (2 * np.median(read))) if read else math.nan


def _ruled_out(depth: Depth) -> tuple[str, ...]:
    reasons = []
    if np.isfinite(depth.slope).any():
        measured, nominal = np.nanmedian(depth.slope), np.nanmedian(depth.nominal)
        reasons.append(f"saturation: E f'^2 = {measured:.2g}, {nominal:.2g} under N(0, 1)")
    if not depth.odd:
        reasons.append("a single faulty layer: no unit stands out")
    return tuple(reasons)


def _bare(record: Record) -> set[str]:
    """Weights that are parameters by themselves, in no layer."""
    return {site.name for site in record.sites_of("weight") if site.kind == "Parameter"}


def _cures(depth: Depth, multiplied: str) -> tuple[Advice, ...]:
    if np.nanmax(depth.eta, initial=0.0) > 1.02:
        return (
            Advice("add-residual-or-norm", "# x = x + layer(norm(x)) in every layer"),
            Advice("critical-init", "# see steadygrad.probe.gain.critical(activation)"),
            Advice("level-init", multiplied),
        )
    return (
        Advice("level-init", multiplied),
        Advice("kaiming-init", "nn.init.kaiming_normal_(layer.weight); nn.init.zeros_(layer.bias)"),
    )


def _odd_findings(record: Record, *, below: bool) -> Iterator[Finding]:
    depth = depth_of(record)
    for one in odd_weights(record):
        if (one.deviation < 0) == below:
            yield _odd_finding(one, _impact(depth, one))


def _impact(depth: Depth | None, one: OddWeight) -> float:
    """Gain of the trunk unit that holds this weight, beyond the trend; 0 when it is beside."""
    if depth is None:
        return 0.0
    for place, site in enumerate(depth.sites):
        if one.site.name == site.name or one.site.name.startswith(f"{site.name}."):
            away = float(depth.gain[place] - depth.trend)
            return away if np.isfinite(away) else math.copysign(9.0, away)
    return 0.0


def _odd_finding(one: OddWeight, impact: float) -> Finding:
    """Judge an odd weight by consequence: what it does to the trunk, or to its own branch."""
    severity = Severity.risk if abs(one.deviation) >= 1.3 else Severity.note
    if abs(impact) >= 2.5 and impact * one.deviation > 0:
        severity = Severity.broken
    absorbed = one.normed and abs(impact) < 0.5
    small_head = (
        one.head and -3.0 < one.deviation < 0
    )  # as many start it: Lillicrap 2016, section 7
    severity = Severity.note if absorbed or small_head else severity
    others = f"its {one.siblings} siblings" if one.siblings else "any initialisation in use"
    after = "; the norm that follows cancels the scale, but not its effect on the step size"
    says = (
        f"{one.site.name or 'a weight'} was initialised {times(one.deviation)} "
        f"{'smaller' if one.deviation < 0 else 'larger'} than {others}: "
        f"mean(W^2) * fan_in = {10 ** (2 * (one.expected + one.deviation)):.3g}, "
        f"theirs {10 ** (2 * one.expected):.3g}{after if absorbed else ''}"
    )
    multiplier = 10.0**-one.deviation
    return Finding(
        severity,
        says,
        (one.site.name,),
        {"deviation_decades": one.deviation, "impact_decades": impact, "multiplier": multiplier},
        confidence="measured" if severity else "possible",
        try_next=(Advice("level-init", patch_multiply((one.site.name,), multiplier)),),
        magnitude=abs(one.deviation),
    )


def _odd_biases(record: Record, *, least: float = 0.7, beyond: float = 1.0) -> Iterator[Finding]:
    """Biases that drown the signal they are added to, unlike the other biases of the model.

    Both the ratio to the signal and, as default inits go with 1 / sqrt(fan_in), bias * sqrt(fan_in)
    must stand out. Where the activation behind it is dead or saturated, or where little signal
    arrives in the first place, that is the finding.
    """
    sites = record.sites_of("weight")
    ratios = _floored(record.read("bias_ratio", "weight"))
    sizes = _floored(record.read("bias_size", "weight"))
    faint = _faint(record.read("weight_in", "weight"))
    weak = {one.place for one in odd_weights(record) if one.deviation < 0}
    for place, site in enumerate(sites):
        if (
            len(sites) < 3
            or faint[place]
            or place in weak
            or _drives(record, place)
            or not ratios[place] >= least
        ):
            continue
        if min(_above(ratios, place), _above(sizes, place)) < beyond:
            continue
        severity = Severity.risk if _loses(record, place) else Severity.note
        says = (
            f"the bias of {site.name} is {times(float(ratios[place]))} the signal it is added to: "
            "what follows sees nearly the same for every sample"
        )
        yield Finding(
            severity,
            says,
            (site.name,),
            {"bias_to_signal_decades": float(ratios[place])},
            confidence="likely" if severity else "possible",
            try_next=(
                Advice("zero-bias", f"nn.init.zeros_(model.get_submodule({site.name!r}).bias)"),
            ),
            magnitude=float(ratios[place]),
        )


def _faint(entering: np.ndarray, *, least: float = 2.0) -> np.ndarray:
    """Whether 2 decades less signal enters an op than entered some op before it."""
    strongest = np.maximum.accumulate(np.nan_to_num(entering, nan=-99.0, neginf=-99.0))
    return np.asarray(strongest - np.nan_to_num(entering, nan=99.0) > least)


def _odd_shifts(record: Record, *, least: float = 0.7, beyond: float = 1.0) -> Iterator[Finding]:
    """Shifts of norms that drown the normalised signal, unlike those of other norms: notes."""
    sites = record.sites_of("norm")
    ratios = _floored(record.read("norm_shift", "norm"))
    for place, site in enumerate(sites):
        if len(sites) < 3 or ratios[place] < least or _above(ratios, place) < beyond:
            continue
        size = float(ratios[place])
        says = f"the shift of {site.name} is {times(size)} the signal that it has normalised"
        patch = f"nn.init.zeros_(model.get_submodule({site.name!r}).bias)"
        yield Finding(
            Severity.note,
            says,
            (site.name,),
            {"bias_to_signal_decades": size},
            confidence="possible",
            try_next=(Advice("zero-bias", patch),),
            magnitude=size,
        )


def _above(values: np.ndarray, place: int, *, alone: float = -0.3) -> float:
    """Distance of one value above the median of the others that were read.

    Where fewer than two were, above `alone`: log10 of the default's median |b| sqrt(fan_in), 1/2.
    """
    others = np.delete(values, place)
    others = others[~np.isnan(others)]
    return float(values[place] - (np.median(others) if len(others) >= 2 else alone))


def _floored(values: np.ndarray, *, least: float = -3.0) -> np.ndarray:
    """Readings with a floor (a bias of zero reads -inf); what was not read stays NaN."""
    return np.where(np.isnan(values), np.nan, np.maximum(values, least))


def _drives(record: Record, place: int) -> bool:
    """Whether the activation behind a weight op is dead or saturated."""
    zeros, dead, passes = (
        record.read(metric, "weight")[place]
        for metric in ("feeds_zeros", "feeds_dead", "feeds_passes")
    )
    return bool(zeros >= 0.999 or dead >= 0.9 or passes < -1)


def _loses(record: Record, place: int) -> bool:
    """Whether samples look more alike behind a weight op that no norm follows and is no head."""
    into, out, normed, last = (
        record.read(metric, "weight")[place]
        for metric in ("weight_in_spread", "weight_spread", "normed", "head")
    )
    return bool(out < 0.3 * into and normed != 1 and last != 1)
