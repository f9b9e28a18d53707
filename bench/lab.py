"""Which published results does the lab reach, how nearly, and in what time?"""

from __future__ import annotations

from bench.table import Row, markdown, publish
from steadygrad.lab.catalogue import EXPERIMENTS
from steadygrad.lab.experiment import Plan
from steadygrad.lab.running import Outcome, bounds, measured, verdict


def run() -> None:
    """Run every experiment at its default size; write lab.md."""
    outcomes = [_told(measured(one, Plan())) for one in EXPERIMENTS]
    reached = sum(one.result.within for one in outcomes)
    numbers = [measure for one in outcomes for measure in one.result.measures]
    text = (
        f"{reached} of {len(outcomes)} experiments and {sum(m.within for m in numbers)} of "
        f"{len(numbers)} numbers are within their tolerance, in "
        f"{sum(one.seconds for one in outcomes):.0f} s on one thread. The reason of each tolerance "
        "stands in the experiment, and is printed by `steadygrad lab NAME`. A dash: the paper "
        "states an order or a curve, and no number; the bound is then ours."
    )
    listed = [_line(one) for one in outcomes]
    rows = [row for one in outcomes for row in _measures(one)]
    tables = [
        markdown(("experiment", "claim", "published", "within", "seconds"), listed),
        markdown(("experiment", "measure", "published", "ours", "must lie in", ""), rows),
    ]
    publish("lab", "The lab: published results, measured again", [text, *tables])


def _told(outcome: Outcome) -> Outcome:
    within = verdict(outcome.result.within)
    print(f"{outcome.experiment.name:<16} {outcome.seconds:6.1f} s  {within}", flush=True)
    return outcome


def _line(outcome: Outcome) -> Row:
    one = outcome.experiment
    seconds = f"{outcome.seconds:.1f}"
    return one.name, one.claim, one.published, verdict(outcome.result.within), seconds


def _measures(outcome: Outcome) -> list[Row]:
    return [
        (
            outcome.experiment.name,
            one.name,
            "-" if one.published is None else f"{one.published:.6g}",
            f"{one.ours:.6g}",
            bounds(one),
            verdict(one.within),
        )
        for one in outcome.result.measures
    ]
