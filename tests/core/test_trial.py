"""Arms are compared seed by seed, and the smallest change that is good enough is chosen."""

from __future__ import annotations

import math
from functools import partial

import pytest

from steadygrad.core.trial import Comparison, Outcome, Trial, smallest

INF = math.inf


def test_the_end_is_the_median_of_the_last_fifth() -> None:
    outcome = Outcome(tuple(float(n) for n in range(50, 0, -1)))

    assert outcome.end(50) == 5.5
    assert outcome.end(20) == 32.5


@pytest.mark.parametrize(
    "outcome", [Outcome((1.0, math.nan)), Outcome((1.0, 0.5), error="it raised"), Outcome()]
)
def test_what_breaks_ends_at_infinity(outcome: Outcome) -> None:
    assert outcome.end(2) == INF


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ((2.3, 2.3, 2.31), (0.4, 0.5, 0.4), "helps"),
        ((2.3, 2.3, 2.31), (0.4, 0.5, 2.3), "no effect"),  # not on every seed
        ((1.0, 3.0, 2.0), (0.5, 2.5, 1.5), "no effect"),  # within the seeds' own spread
        ((2.3, 2.3, 2.3), (2.25, 2.25, 2.25), "no effect"),  # 2 % are no cure
        ((0.4, 0.5, 0.4), (2.3, 2.3, 2.3), "worse"),
        ((4e3, 2e3, 1e3), (1.0, 0.8, 1.0), "helps"),  # all below all, whatever the spread
        ((4e3, 2e3, 1e3), (900.0, 1.0, 2.0), "no effect"),
        ((1.0, 0.8, 1.0), (4e3, 2e3, 1e3), "worse"),
        ((INF, INF, INF), (0.4, 0.5, 0.4), "helps"),
        ((INF, INF, INF), (0.4, INF, 0.4), "no effect"),
        ((INF, INF, INF), (INF, INF, INF), "no effect"),
        ((0.4, 0.5, 0.4), (INF, INF, INF), "worse"),
        ((2.3,), (0.4,), "unsure"),
    ],
)
def test_a_change_helps_only_on_every_seed_and_by_more_than_their_spread(
    before: tuple[float, ...], after: tuple[float, ...], verdict: str
) -> None:
    assert Comparison(before, after).verdict == verdict


def test_a_loss_that_climbs_where_the_other_breaks_is_no_help() -> None:
    assert Comparison((INF, INF), (1e9, 1e9), (2.0, 2.0)).verdict == "no effect"
    assert Comparison((INF, INF), (1.0, 1.5), (2.0, 2.0)).verdict == "helps"


def test_the_interval_is_students() -> None:
    compared = Comparison((2.0, 2.0, 2.0), (1.0, 1.1, 0.9))

    assert compared.effect == pytest.approx(-1.0)
    assert compared.interval == pytest.approx((-1.2483, -0.7517), abs=1e-3)


def _trial(name: str, size: int, *after: float, before: float = 2.0) -> Trial:
    compared = Comparison((before,) * len(after), after)
    return Trial(
        (name,), (0, 1), 10, compared.before, after, compared.verdict, compared.effect, size=size
    )


def test_the_smallest_change_near_the_best_is_chosen() -> None:
    best, near, far = _trial("a", 5, 0.1, 0.1), _trial("b", 1, 0.15, 0.15), _trial("c", 0, 0.9, 0.9)

    assert smallest([best, near, far]) is near
    assert smallest([best, far]) is best
    assert smallest([_trial("d", 1, 2.0, 2.0)]) is None


def test_where_the_untouched_training_breaks_the_losses_themselves_are_compared() -> None:
    good, bad = _trial("a", 3, 0.1, 0.1, before=INF), _trial("b", 1, 9.0, 9.0, before=INF)

    assert smallest([good, bad]) is good


@pytest.mark.parametrize(
    ("losses", "stands"),
    [
        ([2.3] * 20, True),
        ([2.0 - 0.05 * n for n in range(20)], False),
        ([2.0] * 10 + [math.nan] * 10, True),
    ],
)
def test_a_loss_that_has_not_fallen_stands(losses: list[float], stands: bool) -> None:
    assert Outcome(tuple(losses)).stands is stands


def test_another_loss_is_compared_with_where_it_began() -> None:
    fallen = Comparison((0.7, 1.9, 1.2), (0.1, 0.65, 0.4), own=True)
    assert fallen.verdict == "helps"
    assert Comparison((0.7, 1.9, 1.2), (0.1, 0.65, 0.4)).verdict == "no effect"


def test_what_mends_the_loss_comes_before_what_goes_on_with_a_wrong_one() -> None:
    def trial(name: str, after: float, *, own: bool = False) -> Trial:
        befores, afters = (2.0, 2.0), (after, after)
        effect = after - 2.0
        return Trial((name,), (0, 1), 60, befores, afters, "helps", effect, own=own)

    wrong, mended = trial("adam", -1e9), trial("unit-targets", 0.1, own=True)
    assert smallest([wrong, mended]) is mended


def test_what_mends_a_broken_training_is_to_end_below_where_the_best_begins() -> None:
    healed = partial(Trial, steps=60, before=(INF, INF), verdict="helps", effect=-INF)
    mended = partial(healed, ("safe-exp",), (0, 1), mends=True, start=1e17)
    other = healed(("small-head",), (0, 1), after=(40.0, 45.0), start=90.0)
    low = mended(after=(60.0, 60.0))

    assert smallest([mended(after=(1e16, 1e16)), other]) is other
    assert smallest([low, other]) is low


def test_a_blind_draw_is_chosen_last_or_not_at_all() -> None:
    drawn = Trial(("adam",), (0, 1), 60, (2.0, 2.0), (0.1, 0.1), "helps", -1.9, random=True)
    proposed = Trial(("selu",), (0, 1), 60, (2.0, 2.0), (1.0, 1.0), "helps", -1.0)
    assert smallest([drawn, proposed]) is proposed
    assert smallest([drawn]) is drawn
    assert smallest([drawn], blind=False) is None
