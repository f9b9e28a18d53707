"""Watch every training on several seeds: is the illness found, and are the healthy left alone?"""

from __future__ import annotations

import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import steadygrad as sg
from bench.patients import summary
from bench.table import markdown, publish
from steadygrad.core.report import Report
from steadygrad.testing import HEALTHY_TRAININGS, TRAININGS, Training

SEEDS = (0, 1, 2, 3, 4)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a watch said of one sick training at one seed."""

    training: Training
    seed: int
    report: Report
    seconds: float

    @property
    def wrong(self) -> str:
        """What is wrong with the answer; '' for nothing."""
        if not self.training.found(self.report):
            return "missed"
        if not self.training.named(self.report):
            return "cause"
        return "" if self.training.located(self.report) else "place"


def watched(run: Callable[[], object], *raised: type[Exception]) -> tuple[Report, float]:
    """Watch with what a watch costs by default; the report, and the seconds of the training."""
    begin = time.perf_counter()
    with suppress(*raised), sg.watch() as watch:
        run()
    return watch.report(), time.perf_counter() - begin


def run(seeds: Sequence[int] = SEEDS) -> None:
    """Watch all trainings; write trainings.md."""
    warnings.simplefilter("ignore")
    sick = [_sick(one, seed) for one in TRAININGS for seed in seeds]
    twins = [_well(one, seed, "twin") for one in TRAININGS for seed in seeds]
    well = [_well(one, seed, "healthy") for one in HEALTHY_TRAININGS for seed in seeds]
    publish(
        "trainings",
        "Sick trainings under a watch: found, cause, place; and false alarms",
        [
            _totals(sick, [*twins, *well]),
            "## Not as it should be\n\n" + _misses(sick, [*twins, *well]),
            "## All, at the first seed\n\n" + _all([one for one in sick if one.seed == seeds[0]]),
        ],
    )


def _sick(training: Training, seed: int) -> Answer:
    report, seconds = watched(lambda: training.run(seed), *training.raises)
    return Answer(training, seed, report, seconds)


def _well(training: Training, seed: int, what: str) -> tuple[str, str, int, Report]:
    run = training.run_twin if what == "twin" else training.run
    return training.name, what, seed, watched(lambda: run(seed))[0]


def _totals(sick: Sequence[Answer], well: Sequence[tuple[str, str, int, Report]]) -> str:
    wrong = [one.wrong for one in sick]
    missed, cause, place = (wrong.count(word) for word in ("missed", "cause", "place"))
    count, alarms = len(sick), sum(one[-1].verdict != "healthy" for one in well)
    rows = [
        ("sick: found", _share(count - missed, count)),
        ("sick: cause right", _share(count - missed - cause, count)),
        ("sick: cause and place right", _share(count - missed - cause - place, count)),
        ("healthy: false alarms", _share(alarms, len(well))),
        ("seconds per sick training", sum(one.seconds for one in sick) / count),
    ]
    return markdown(("", "reached"), rows)


def _misses(sick: Sequence[Answer], well: Sequence[tuple[str, str, int, Report]]) -> str:
    rows: dict[tuple[str, str, str, str], list[int]] = defaultdict(list)
    for one in sick:
        if one.wrong:
            codes, places = "|".join(sorted(one.training.codes)), "|".join(one.training.where)
            said = summary(one.report)
            rows[one.training.name, one.wrong, f"{codes} at {places}", said].append(one.seed)
    for name, what, seed, report in well:
        if report.verdict != "healthy":
            rows[name, f"false alarm ({what})", "nothing", summary(report)].append(seed)
    table = [(*key, ",".join(map(str, seeds))) for key, seeds in rows.items()]
    return markdown(("training", "wrong", "expected", "said", "seeds"), table)


def _all(sick: Sequence[Answer]) -> str:
    rows = [
        (
            one.training.name,
            one.training.why,
            "|".join(sorted(one.training.codes)),
            summary(one.report),
        )
        for one in sick
    ]
    return markdown(("training", "why", "expected", "said"), rows)


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({part / whole:.1%})"
