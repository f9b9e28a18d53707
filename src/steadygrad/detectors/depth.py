"""The depth profile as the flow detectors read it: units in forward order, and who stands out."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from steadygrad.core.finding import Severity
from steadygrad.core.record import Record, Site
from steadygrad.core.theory import single_draw_band

Array = NDArray[np.float64]
Kind = Literal["scale", "collapsing", "chaotic"]
ADAPTIVE = ("adam", "adagrad", "adadelta", "rmsprop", "lion", "muon", "adafactor", "rprop", "lamb")


@dataclass(frozen=True, slots=True)
class Depth:
    """Units of the trunk in forward order; all arrays are [units], gains in decades.

    `gain` is what the gradient's norm gains from a unit's output to its input, pooling left out.
    `odd` are the places that stand out; `body` those from which the trend is read; `joins` is 1
    where another input joins, between which the gradient divides; `heavy` says that most
    weights are twice as large as any activation needs.
    """

    sites: list[Site]
    gain: Array
    parts: dict[str, Array]
    log_rms: Array
    spread: Array
    within: Array
    slope: Array
    nominal: Array
    pre_rms: Array
    eta: Array
    ideal: Array
    joins: Array
    theory: Array
    uses: Array
    heavy: bool
    body: Array
    odd: list[int]
    totals: dict[str, Any]

    @property
    def trend(self) -> float:
        """Median gain per unit of the body, in decades."""
        return float(np.median(self.gain[self.body.astype(bool)])) if self.body.any() else 0.0

    @property
    def steady(self) -> float:
        """Gain in decades of all units that do not stand out."""
        return float(self.gain[self._usual].sum())

    @property
    def predicted(self) -> float:
        """What the weights' own scale and the activations' nominal slope make of these units."""
        return float(np.nansum(self.theory[self._usual]))

    @property
    def _usual(self) -> NDArray[np.bool_]:
        keep = np.isfinite(self.gain)
        keep[self.odd] = False
        return keep

    @property
    def excess(self) -> float:
        """What remains of the steady gain beyond the band of a single draw; 0 inside of it.

        The band reaches from Gaussian weights' shift to the infinite-width value, which orthogonal
        weights keep, and three standard deviations beyond either. Where theory predicts most of the
        gain from the weights' scale, or fixed factors (a graph's averaging, a constant) make half
        of it, chance is no explanation and nothing is taken off.
        """
        fixed = float(self.parts["other"][self._usual].sum())
        for known, share in ((self.predicted, 0.6), (fixed, 0.5)):
            if known * self.steady > 0 and abs(known) >= share * abs(self.steady):
                return self.steady
        shift, half = single_draw(self.totals.get("widths", []))
        return min(self.steady - shift + half, 0.0) + max(self.steady - half, 0.0)

    @property
    def kind(self) -> Kind:
        """Which of three illnesses a systematic gain is (Philipp 2018, sections 3 and 4).

        Chaotic: the batch-centred coefficient grows, so that rescaling weights cannot cure it.
        Collapsing: the signal's variation dies faster than the signal. Scale: both move together.
        """
        total, gsc, nlc = (abs(self.steady), self.totals["gsc"], self.totals["nlc"])
        if np.isfinite(nlc) and nlc > max(1.5, 0.5 * total):
            return "chaotic"
        alike = self.totals["spread_out"] < 0.1 * min(1.0, self.totals["spread_in"])
        return "collapsing" if gsc < -max(1.5, 0.5 * total) and alike else "scale"

    def named(self, places: Sequence[int]) -> tuple[str, ...]:
        """Names of units, each once."""
        return tuple(dict.fromkeys(self.sites[place].name for place in places))


@functools.lru_cache(maxsize=1)
def depth_of(record: Record) -> Depth | None:
    """Read the depth profile; None when there is no unit, or no weight on the way to train."""
    sites = record.sites_of("unit")
    trained = record.facts.get("flow", {}).get(
        "weights", 1
    )  # update ratios have sites of their own
    if not sites or not trained or not record.sites_of("weight"):
        return None
    roles = ("weight", "act", "norm", "block", "attn", "pool", "other")
    parts = {
        role: np.nan_to_num(record.read(f"gain_{role}", "unit"), neginf=-np.inf) for role in roles
    }
    # a branch that starts at zero adds nothing: what it adds when opened is no growth
    shut = record.read("opened", "unit") == 1
    parts = {role: np.where(shut, np.minimum(part, 0.0), part) for role, part in parts.items()}
    gain = record.read("gain", "unit") - np.where(np.isfinite(parts["pool"]), parts["pool"], 0.0)
    gain = np.where(shut, np.minimum(gain, 0.0), gain)
    body = _body(sites, gain)
    return Depth(
        sites,
        gain,
        parts,
        record.read("log_rms", "unit"),
        record.read("spread", "unit"),
        record.read("within", "unit"),
        record.read("slope", "unit"),
        record.read("slope_nominal", "unit"),
        record.read("pre_rms", "unit"),
        record.read("eta", "unit"),
        record.read("ideal", "unit"),
        record.read("joins", "unit"),
        _theory(record, sites),
        record.read("uses", "unit"),
        _heavy(record),
        body,
        _odd(gain, body),
        dict(record.facts["flow"]),
    )


def _theory(record: Record, sites: Sequence[Site]) -> Array:
    """What theory makes of each unit with one weight op; NaN for blocks.

    log10 sqrt(mean(W^2) fan_in E f'^2) without a norm (He 2015), with one log10 of
    sqrt(E f'^2 / Var f) (Yang 2019).
    """
    weights = record.sites_of("weight")
    scale = dict(zip((w.name for w in weights), record.read("weight_gain", "weight"), strict=True))
    nominal = record.read("slope_nominal", "unit")
    slope = 0.5 * np.log10(np.where(nominal > 0, nominal, 1.0))
    plain = np.array([scale.get(site.name, np.nan) for site in sites])
    blocks = np.array([site.kind == "block" for site in sites])
    normed = np.nan_to_num(record.read("gain_norm", "unit")) != 0
    made = np.where(normed, record.read("act_nlc", "unit"), plain + slope)
    return np.where(blocks | ~np.isfinite(plain), np.nan, made)


def _heavy(record: Record, *, least: float = 0.45) -> bool:
    """Whether the typical sqrt(mean(W^2) fan_in) is beyond 10**0.45, twice He's sqrt(2)."""
    gains = record.read("weight_gain", "weight")
    return bool(np.isfinite(gains).any() and np.nanmedian(gains) > least)


def _body(sites: Sequence[Site], gain: Array) -> Array:
    """1 where the trend is read: all units but the first and the last, when there are many."""
    body = np.isfinite(gain).astype(np.float64)
    if len(sites) > 4:
        body[[0, -1]] = 0.0
    return body


def _odd(gain: Array, body: Array, *, least: float = 0.5, spreads: float = 6.0) -> list[int]:
    """Places whose gain is further from the median than `spreads` MAD and `least` decades.

    Chosen by us: on 25 healthy networks no weight op of a body exceeds 0.5 decades.
    """
    if not body.any():
        return []
    inside = gain[body.astype(bool)]
    median = np.median(inside)
    mad = 1.4826 * np.median(np.abs(inside - median))
    far = ~(np.abs(gain - median) <= max(spreads * mad, least))
    return [int(place) for place in np.flatnonzero(far)]


def single_draw(widths: Sequence[int]) -> tuple[float, float]:
    """Expected shift and half-width, in decades, of the gain of one draw of the weights."""
    real = [width for width in widths if width > 0]
    if not real:
        return 0.0, 0.0
    band = single_draw_band(real)
    return float(band.shift), float(band.half_width)


def adaptive(record: Record) -> bool:
    """Whether the optimizer divides each gradient by its own size."""
    name = str(record.facts.get("optimizer", "")).lower()
    return any(one in name for one in ADAPTIVE)


@dataclass(frozen=True, slots=True)
class OddWeight:
    """A weight op whose scale differs from that of its siblings, in decades.

    Without siblings (0) it differs from any init in use.
    """

    site: Site
    place: int
    deviation: float
    expected: float
    siblings: int
    normed: bool
    head: bool


def odd_weights(
    record: Record, *, least: float = 0.8, spreads: float = 6.0, alone: float = 1.3
) -> list[OddWeight]:
    """Weight ops that were initialised unlike their siblings, the most deviating first.

    Siblings have the same name but for digits, and the same kind of op: they come from one line of
    the model's code. The measure is log10 sqrt(mean(W^2) fan_in). Where there are fewer than three
    siblings, all weight ops of the kind serve, or all but embeddings, at the wider distance
    `alone`. Chosen by us: inits in use lie within 0.8 decades of their siblings (depth-scaled ones
    within 0.5 log10(depth)).
    """
    sites, gains = record.sites_of("weight"), record.read("weight_gain", "weight")
    normed, head = record.read("normed", "weight"), record.read("head", "weight")
    families: dict[str, list[int]] = {}
    for place, site in enumerate(sites):
        families.setdefault(f"{re.sub(r'[0-9]+', '#', site.name)} {site.kind}", []).append(place)
    found = []
    for places in families.values():
        family = places if len(places) >= 3 else _of_kind(sites, sites[places[0]].kind)
        far = least if len(places) >= 3 else alone
        values = gains[family][np.isfinite(gains[family])]
        if len(values) < 3:
            continue
        median = float(np.median(values))
        mad = 1.4826 * float(np.median(np.abs(values - median)))
        expected = _expected(values, median)
        distance = max(far, spreads * mad) if expected == median else least
        for place in places:
            away = float(gains[place] - expected)
            sane = expected != median and LOW <= gains[place] <= HIGH
            if np.isfinite(away) and abs(away) > distance and not sane:
                site = sites[place]
                siblings = len(family) - 1 if expected == median else 0
                flags = bool(normed[place] == 1), bool(head[place] == 1)
                found.append(OddWeight(site, place, away, expected, siblings, *flags))
    return sorted(found, key=lambda one: -abs(one.deviation))


LOW, HIGH = -1.3, 0.8  # log10 sqrt(mean(W^2) fan_in) of inits in use: 0.05 (std 0.02) to 6.3


def _expected(gains: Array, median: float) -> float:
    """Scale to compare with: the median, unless most are beyond any init in use and some are not.

    Then the nearer end of that band, so that a sane layer among wild siblings is not the odd one.
    """
    sane = (gains >= LOW) & (gains <= HIGH)
    return float(np.clip(median, LOW, HIGH)) if sane.any() else median


def _of_kind(sites: Sequence[Site], kind: str) -> list[int]:
    """Places of one kind of op; where there are fewer than three, all but embeddings serve."""
    alike = [place for place, site in enumerate(sites) if site.kind == kind]
    if len(alike) >= 3 or kind == "Embedding":
        return alike
    return [place for place, site in enumerate(sites) if site.kind != "Embedding"]


Cause = Literal[
    "residual",
    "time",
    "norm",
    "factor",
    "activation",
    "saturated",
    "dead",
    "unstable",
    "weight",
    "unknown",
]


@dataclass(frozen=True, slots=True)
class Trend:
    """A gain that accumulates over the depth: its decades beyond the band, and what causes it."""

    depth: Depth
    decades: float
    cause: Cause
    severity: Severity
    places: list[int]

    @property
    def factor(self) -> float:
        """Factor of the gradient's norm per unit, towards the input."""
        return float(10.0**self.depth.trend)


@functools.lru_cache(maxsize=1)
def trend_of(
    record: Record,
    *,
    vanish: tuple[float, float, float] = (2.0, 3.3, 7.0),
    vanish_adaptive: tuple[float, float, float] = (2.5, 5.0, 8.0),
    explode: tuple[float, float, float] = (1.3, 2.0, 5.0),
) -> Trend | None:
    """Read the trend over the depth; None when it stays below the first of the thresholds.

    Thresholds are decades for a note, a risk, and broken, beyond the single-draw band. Measured on
    plain networks of depth 4 to 20 on handwritten digits: SGD with momentum
    learns at -3.0 decades and is stuck at -3.5; Adam, which divides each gradient by its size,
    learns slowly down to -5.5. At 7 decades float32 (1.2e-7) no longer holds the signal.
    """
    depth = depth_of(record)
    if depth is None or len(depth.sites) < 2:
        return None
    decades = depth.excess
    steps = explode if decades > 0 else vanish_adaptive if adaptive(record) else vanish
    level = sum(abs(decades) >= step for step in steps)
    if level == 0:
        return None
    cause = _cause(depth, decades)
    return Trend(depth, decades, cause, Severity(level - 1), _carriers(depth, decades, cause))


def _carriers(depth: Depth, decades: float, cause: Cause) -> list[int]:
    """Units that carry the trend: those with at least half of the median gain, in its direction."""
    enough = depth.gain * np.sign(decades) >= 0.5 * abs(depth.trend)
    if cause == "residual":
        enough &= np.array([site.kind == "block" for site in depth.sites])
    return [int(place) for place in np.flatnonzero(enough) if place not in depth.odd]


def _cause(depth: Depth, decades: float) -> Cause:
    keep = [place for place in range(len(depth.sites)) if place not in depth.odd]
    share = {role: float(values[keep].sum()) for role, values in depth.parts.items()}
    if share["block"] * np.sign(decades) > 0.6 * abs(decades):
        if np.nanmax(depth.uses[keep], initial=0.0) >= 8:
            return "time"
        return "weight" if decades > 0 and depth.heavy else "residual"
    if share["other"] * np.sign(decades) > 0.5 * abs(decades):
        return "factor"
    normed = np.count_nonzero(depth.parts["norm"][keep])
    if decades > 0 and normed >= 0.5 * len(keep):
        return "norm"
    return "weight" if decades > 0 else _vanishing_cause(depth, keep)


def _vanishing_cause(depth: Depth, keep: list[int]) -> Cause:
    """Tell weights from activations by E f'^2, as measured against N(0, 1) (theory, section a)."""
    slope, nominal = _median(depth.slope[keep]), _median(depth.nominal[keep])
    if slope < 0.25 * nominal:
        return "saturated" if _median(depth.pre_rms[keep]) > np.log10(0.5) else "dead"
    if nominal < 0.1:
        return "activation"
    weight = _median(depth.parts["weight"][keep])
    if _median(depth.eta[keep]) > 1.02 and weight > _median(depth.ideal[keep]) - 0.05:
        return "unstable"
    return "weight" if np.isfinite(weight) else "unknown"


def _median(values: Array) -> float:
    real = values[np.isfinite(values)]
    return float(np.median(real)) if len(real) else float("nan")
