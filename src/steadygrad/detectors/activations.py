"""Activations: units that are dead, saturated, or too many in a row for what carries them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

from steadygrad.core.finding import Advice, Finding, Severity, detector
from steadygrad.core.record import Record, Site
from steadygrad.detectors.depth import trend_of
from steadygrad.detectors.initialisation import evidence
from steadygrad.detectors.words import layers

BOUNDED = re.compile(r"Sigmoid|Tanh|Softmax|Softplus|Exp")  # zeros there are an underflow


@detector(
    "G301",
    "dead-relu",
    needs=("op_gain",),
    explains=("G102", "G104", "G105", "G303", "G501", "G302"),
)
def dead_relu(record: Record) -> Iterator[Finding]:
    """An activation that puts out nothing but zeros, so that no gradient passes it.

    What it looks at: the first activation in forward order of which 99.9 % of the outputs are
    exactly zero although fewer than half of its inputs were. The last such one would be the wrong
    end: everything behind a dead layer looks dead as well. The layer that feeds it is named, since
    its bias or weights push every unit below zero. Or one of which 90 % of the units are zero for
    every sample and position while at most half are in its peers. Smaller shares are not reported:
    half of a ReLU layer's outputs are zero by nature, and a fifth to a half of the units of a
    healthy deep network are dead in any one batch.

    Why it matters: the gradient behind it is exactly zero, for every sample, for ever.

    When it is wrong: a gate or an expert that is meant to be shut for the samples of this batch.

    What to try: zero the bias of the feeding layer and initialise its weights anew; LeakyReLU.

    References: Lu 2019, dying ReLU (arXiv 1903.06733); He 2015 (arXiv 1502.01852) for PReLU.
    """
    first = _first_dead(record)
    if first is None:
        return
    site, zeros = record.sites_of("output")[first], record.read("op_zeros", "output")[first]
    share = record.read("op_dead", "output")[first]
    feeding = feeder(record, first)
    where = tuple(dict.fromkeys(name for name in (feeding, site.name) if name))
    amount = f"{zeros:.1%} of the outputs" if zeros >= 0.999 else f"{share:.0%} of the units"
    says = (
        f"{amount} of {site.name or site.kind} are zero for every sample: "
        f"{feeding or 'the layer before'} feeds them nothing above zero, no gradient passes back"
    )
    patch = f"nn.init.zeros_(model.get_submodule({feeding!r}).bias)"
    yield Finding(
        Severity.broken if zeros >= 0.999 else Severity.risk,
        says,
        where,
        {"zeros": float(zeros), "dead_units": float(share)},
        try_next=(Advice("revive", patch), Advice("leaky-relu", "nn.LeakyReLU(0.01)")),
        magnitude=9.0,
    )


def _first_dead(record: Record) -> int | None:
    """Place of the first activation that is dead: wholly, or in units far beyond its peers."""
    sites = record.sites_of("output")
    zeros, before = record.read("op_zeros", "output"), record.read("op_zeros_before", "output")
    share, known = record.read("op_dead", "output"), record.read("op_nominal", "output")
    peers = np.nanmedian(share) if np.isfinite(share).sum() >= 3 else 1.0
    cut = np.array([not BOUNDED.search(site.kind) for site in sites], dtype=bool)
    dead = (zeros >= 0.999) & ~(before >= 0.5) & np.isfinite(known) & cut
    dead |= (share >= 0.9) & (peers <= 0.5)
    places = (int(place) for place in np.flatnonzero(dead))
    return min(places, key=lambda place: sites[place].depth, default=None)


def feeder(record: Record, place: int) -> str:
    """Name of the module whose parameters feed the output at this place; '' for none."""
    return str(record.facts["feeders"][place])


@detector(
    "G302", "saturated-activation", needs=("op_gain", "flow"), explains=("G102", "G104", "G105")
)
def saturated_activation(record: Record) -> Iterator[Finding]:
    """Activations used where they are flat, so that they pass on little of the gradient.

    What it looks at: E f'^2, the share of the squared gradient that an activation passes, measured
    in place, against its value under N(0, 1). A trend of vanishing is laid to the activations when
    they pass less than a quarter of that while their inputs are large, or when even under N(0, 1)
    they pass less than a tenth (sigmoid: 0.045). A single activation is reported when it passes a
    hundredth of what its kind passes elsewhere in the network.

    Why it matters: ten sigmoid layers lose 6 decades of gradient, whatever the weights.

    When it is wrong: gates of recurrent cells are meant to saturate; they are not on the trunk.

    What to try: tanh, SiLU, or ReLU instead of a sigmoid between layers; smaller weights or biases
    before a saturated tanh; a norm layer before it.

    References: Glorot 2010, section 3; Philipp 2018 (arXiv 1712.05577).
    """
    trend = trend_of(record)
    if trend is not None and trend.decades < 0 and trend.cause in ("saturated", "activation"):
        depth = trend.depth
        names = depth.named(trend.places)
        slope, nominal = float(np.nanmedian(depth.slope)), float(np.nanmedian(depth.nominal))
        own = trend.cause == "activation"
        why = (
            f"and {nominal:.2g} under N(0, 1): no weights make up for that"
            if own
            else f"{nominal:.2g} where it is used as meant: what enters it is too large"
        )
        says = (
            f"the activations after {layers(names)} pass {slope:.2g} of the squared gradient "
            f"(E f'^2), {why}; {trend.decades:+.1f} decades in all"
        )
        numbers = evidence(depth, trend) | {"slope": slope, "slope_nominal": nominal}
        advice = Advice("swap-activation", "nn.Tanh()  # or nn.ReLU(), nn.SiLU()")
        other = Advice("normalise", "nn.BatchNorm1d(width)  # before the activation")
        cures = (advice, other) if own else (other, advice)
        size = abs(trend.decades)
        yield Finding(trend.severity, says, names, numbers, try_next=cures, magnitude=size)
    yield from _odd_activations(record)


def _odd_activations(record: Record) -> Iterator[Finding]:
    """Activations that pass far less of the gradient than others of their kind, as one finding."""
    flat = _flat(record)
    if not flat:
        return
    sites = record.sites_of("output")
    passes = record.read("op_gain", "output") - record.read("op_nominal", "output")
    worst = min(flat, key=lambda place: passes[place])
    size = float(-passes[worst]) if math.isfinite(passes[worst]) else 9.0
    feeding = feeder(record, worst)
    ordered = sorted(flat, key=lambda place: sites[place].depth)
    pairs = [(feeder(record, place), sites[place].name) for place in ordered]
    where = tuple(dict.fromkeys(name for pair in pairs for name in pair if name))
    driver = f"the bias of {feeding}" if _bias_of(record, feeding) > 0.7 else feeding
    says = (
        f"{layers([name or 'an activation' for _, name in pairs])} pass as little as "
        f"1e-{size:.1f} of the gradient that they would pass under N(0, 1): "
        f"{driver or 'the layer before'} drives the activation into its flat ends"
    )
    severity = Severity.broken if size >= 3 else Severity.risk
    patch = f"nn.init.zeros_(model.get_submodule({feeding!r}).bias)"
    advice = (Advice("reinitialise", patch),)
    numbers = {"passes_decades": -size, "activations": float(len(flat))}
    yield Finding(severity, says, where, numbers, try_next=advice, magnitude=size)


def _flat(record: Record, *, least: float = 1.0) -> list[int]:
    """Places of activations that pass a decade less than under N(0, 1), unlike peers or by bias."""
    sites = record.sites_of("output")
    away = record.read("op_gain", "output") - record.read("op_nominal", "output")
    zeros = record.read("op_zeros", "output")
    found = []
    bounded = np.array([bool(BOUNDED.search(site.kind)) for site in sites], dtype=bool)
    for place in np.flatnonzero((away < -least) & (bounded | ~(zeros >= 0.9))):
        peers = _peers(sites, away, int(place))
        unlike = len(peers) >= 2 and float(np.median(peers)) - away[place] >= least
        if unlike or _bias_of(record, feeder(record, int(place))) > 0.7:
            found.append(int(place))
    return found


def _bias_of(record: Record, name: str) -> float:
    """log10 of shift to signal at a weight op or norm; -inf where there is no such op."""
    pairs = [*zip(record.sites_of("weight"), record.read("bias_ratio", "weight"), strict=True)]
    pairs += zip(record.sites_of("norm"), record.read("norm_shift", "norm"), strict=True)
    mine = [float(ratio) for site, ratio in pairs if site.name == name and np.isfinite(ratio)]
    return max(mine, default=-math.inf)


def _peers(sites: Sequence[Site], values: np.ndarray, place: int) -> list[float]:
    kind = sites[place].kind
    others = (i for i, site in enumerate(sites) if site.kind == kind and i != place)
    return [float(values[i]) for i in others if np.isfinite(values[i])]


@detector("G304", "unnormalised-depth", needs=("flow",), explains=("G102", "G104", "G105"))
def unnormalised_depth(record: Record) -> Iterator[Finding]:
    """A deep plain stack of an activation whose fixed point no weight scale holds.

    What it looks at: a vanishing trend although the weights have the activation's own
    variance-preserving gain, for an activation whose second moment drifts away from its fixed
    point: eta = d ln E f(sqrt(q) z)^2 / d ln q > 1 (GELU 1.14, SiLU 1.17, Mish 1.08, Hardswish
    1.22), so that a small error doubles every 4 to 36 layers.

    Why it matters: 30 GELU layers with the exact gain lose 3 decades and do not learn.

    When it is wrong: under an optimizer that normalises the gradient it may learn, slowly.

    What to try: residual connections with a norm; the critical pair of bias and weight variance;
    an activation with eta <= 1.

    References: Roberts, Yaida & Hanin 2022, section 5.3 (criticality of non-scale-invariant
    activations); Philipp 2018.
    """
    trend = trend_of(record)
    if trend is None or trend.cause != "unstable":
        return
    depth = trend.depth
    names = depth.named(trend.places)
    eta = float(np.nanmedian(depth.eta))
    says = (
        f"{len(depth.sites)} layers without residual or norm lose {abs(trend.decades):.1f} decades "
        f"although their weights have the activation's own gain: its fixed point is unstable "
        f"(eta = {eta:.2f} > 1), so no weight scale holds over this depth"
    )
    advice = Advice("add-residual-or-norm", "# x = x + layer(norm(x)) in every layer")
    pair = Advice("critical-init", "# see steadygrad.probe.gain.critical(activation)")
    numbers = evidence(depth, trend) | {"eta": eta}
    size = abs(trend.decades)
    yield Finding(trend.severity, says, names, numbers, try_next=(advice, pair), magnitude=size)
