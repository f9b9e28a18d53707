"""Through time: the gradient on its way back over the steps of a sequence."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from steadygrad.core.finding import Advice, Finding, Severity, detector
from steadygrad.core.record import Record, Site
from steadygrad.detectors.depth import trend_of
from steadygrad.detectors.words import layers

RECURRENT = re.compile(r"(RNN|LSTM|GRU)(Cell)?$")
METRICS = ("factor", "decades", "horizon", "steps", "travels")


@detector("G106", "exploding-through-time", needs=("time",), explains=("G101", "G108"))
def exploding_through_time(
    record: Record, *, factor: float = 1.05, decades: float = 3.0, broken: float = 8.0
) -> Iterator[Finding]:
    """A recurrent module whose gradient grows with every step back in time.

    **What it looks at.** |dh_T / dx_t|, the gradient of the last state with respect to every input,
    from running each recurrent module alone on the input it was given, in float64; for a module
    that a loop calls, the gradient at its outputs over the number of the call. The slope of its
    logarithm is the median over pairs of steps half a sequence apart. Reported when it grows by
    more than `factor` = 1.05 per step and over all steps by more than `decades` = 3 (a risk) or
    `broken` = 8. Chosen by us: on PyTorch's default RNN, GRU and LSTM, and on orthogonal recurrent
    weights, the factor is below 1; an update by a gradient a thousand times too large in some
    directions undoes what it learned; from 1e8 on, float32 holds nothing else beside it.

    **Why it matters.** The update is made of the distant past alone, and one long sequence
    suffices to throw the weights away.

    **When it is wrong.** Clipping tames it (Pascanu 2013), and check does not know of clipping that
    comes later. An orthogonal or identity recurrence grows a little at first on purpose.

    **What to try.** Clip by norm; an orthogonal recurrent matrix; a gated cell; shorter windows of
    back-propagation.

    **References.** Pascanu 2013, sections 2 and 3.2; Bengio 1994; Le 2015 (identity recurrence).
    """
    for site, row in _rows(record):
        if row["factor"] > factor and row["decades"] > decades:
            yield _finding(
                site,
                row,
                Severity.broken if row["decades"] > broken else Severity.risk,
                "grows",
                (
                    Advice("clip-norm", "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)"),
                    Advice("orthogonal-recurrence", _orthogonal(site)),
                ),
            )
    yield from _loop(record, growing=True)


@detector("G107", "vanishing-through-time", needs=("time",), explains=("G102",))
def vanishing_through_time(
    record: Record, *, decades: float = 24.0, noted: float = 6.0
) -> Iterator[Finding]:
    """A recurrent module whose gradient is gone before it reaches the first steps.

    **What it looks at.** The same slope as `exploding-through-time`, and where the loss looks: the
    gradient at each step of the recurrent output. Only when it looks at no more than a tenth of the
    steps (the last state, mostly) must the gradient travel through time. Then a fall by more than
    `decades` = 24 is a risk, by more than `noted` = 6 a note. For modules in a loop the measured
    gradient is the loss's own, so that supervision at every step shows as a level one.

    Both limits are chosen by us. float32 resolves 7 decades: a part of the gradient 6 decades below
    another no longer changes the sum. PyTorch's defaults lose 0.19 (GRU), 0.2 (LSTM), 0.25 (RNN)
    decades per step, so that 24 decades are about 120 steps: below that such networks are trained
    every day and do well on what depends on the recent past; beyond, nearly all of the sequence is
    out of reach.

    **Why it matters.** The network learns from the last few steps (the horizon: steps over which
    the gradient falls by e) and from nothing before them, while every parameter's gradient looks
    ordinary. The loss falls to what the recent past explains.

    **When it is wrong.** When only the recent past matters, nothing is lost. Training may lengthen
    the horizon (LSTM learns to open its forget gate) when there is some signal to start with.

    **What to try.** LSTM: chrono initialisation of the forget bias, log U(1, T - 1) (Tallec 2018):
    measured at T = 200, -41 becomes -0.9 decades, where a constant bias of 1 leaves -15. RNN: an
    orthogonal recurrent matrix and small inputs, or a gated cell. Any: mean over the steps or
    attention instead of the last state.

    **References.** Hochreiter 1991; Bengio 1994; Pascanu 2013; Tallec and Ollivier 2018, section 2;
    Jozefowicz 2015 (forget bias).
    """
    for site, row in _rows(record):
        if row["decades"] < -noted and row["travels"] > 0:
            severity = Severity.risk if row["decades"] < -decades else Severity.note
            yield _finding(site, row, severity, "falls", _remedies(site, row))
    yield from _loop(record, growing=False)


def _loop(record: Record, *, growing: bool) -> Iterator[Finding]:
    """A trend of the depth profile within blocks that use one weight over and over: a bare loop."""
    trend = trend_of(record) if record.was_read("flow") else None
    if trend is None or trend.cause != "time" or (trend.decades > 0) != growing:
        return
    names = trend.depth.named(trend.places)
    uses = float(np.nanmax(trend.depth.uses[trend.places]))
    word = "grows" if growing else "shrinks"
    says = (
        f"the gradient {word} by {trend.decades:+.1f} decades over {uses:.0f} uses of the same "
        f"weight in {layers(names)}"
    )
    severity = trend.severity if growing or trend.decades < -24 else Severity.note
    advice = Advice("orthogonal-recurrence", "nn.init.orthogonal_(recurrent_weight)")
    clip = Advice("clip-norm", "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)")
    yield Finding(
        severity,
        says,
        names,
        {"time_decades": trend.decades, "time_steps": uses},
        confidence="likely",
        try_next=(clip, advice) if growing else (advice,),
        magnitude=abs(trend.decades),
    )


def _rows(record: Record) -> Iterator[tuple[Site, dict[str, float]]]:
    columns = {name: record.read(f"time_{name}", "time") for name in METRICS}
    for place, site in enumerate(record.sites_of("time")):
        row = {name: float(column[place]) for name, column in columns.items()}
        if not np.isnan(row["decades"]):
            yield site, row


def _finding(
    site: Site, row: dict[str, float], severity: Severity, does: str, tries: tuple[Advice, ...]
) -> Finding:
    return Finding(
        severity,
        f"on its way back through the {row['steps']:.0f} steps of {site.name} ({site.kind}) the "
        f"gradient {does} by {row['decades']:+.1f} decades: x{row['factor']:.3g} per step, "
        f"a horizon of {row['horizon']:.1f} steps.",
        (site.name,),
        {
            "time_decades": row["decades"],
            "time_factor": row["factor"],
            "time_horizon": row["horizon"],
            "time_steps": row["steps"],
        },
        try_next=tries,
        magnitude=abs(row["decades"]),
    )


def _remedies(site: Site, row: dict[str, float]) -> tuple[Advice, ...]:
    if "LSTM" in site.kind:
        return (Advice("chrono-init", _chrono(site, int(row["steps"]))), Advice("read-all-steps"))
    if "GRU" in site.kind:
        return (Advice("read-all-steps"), Advice("update-gate-bias"))
    return (Advice("orthogonal-recurrence", _orthogonal(site)), Advice("gated-cell"))


def _orthogonal(site: Site) -> str:
    weight = "weight_hh" if site.kind.endswith("Cell") else "weight_hh_l0"
    weight = weight if RECURRENT.search(site.kind) else "weight"
    return f"nn.init.orthogonal_(model.{site.name}.{weight})"


def _chrono(site: Site, steps: int) -> str:
    end = "" if site.kind.endswith("Cell") else "_l0"
    cell = f"model.{site.name}"
    return (
        f"hidden = {cell}.hidden_size\n"
        f"forget = torch.log(torch.empty(hidden).uniform_(1, {max(steps - 1, 2)}))\n"
        "with torch.no_grad():\n"
        f"    {cell}.bias_ih{end}.zero_()\n"
        f"    {cell}.bias_hh{end}.zero_()\n"
        f"    {cell}.bias_hh{end}[hidden : 2 * hidden] = forget\n"
        f"    {cell}.bias_hh{end}[:hidden] = -forget"
    )
