"""The table of a cure can be read."""

from __future__ import annotations

import math
import re

from steadygrad.core.trial import Cure, Trial, Verdict
from steadygrad.render.trials import besides, effect_of, table
from steadygrad.render.words import UNICODE


def test_the_columns_stand_apart_for_two_seeds() -> None:
    untouched = Trial((), (0, 1), 60, (2.0, 2.0), (2.0, 2.0), "no effect")
    head = next(iter(table(Cure((untouched,)), 80, UNICODE))).plain
    assert re.search(r"loss after 60 steps {2,}against no change {2,}verdict", head)


def test_numbers_of_any_size_fit_their_column() -> None:
    def told(after: float, interval: tuple[float, float], verdict: Verdict = "helps") -> str:
        ends = (after, after)
        return effect_of(
            Trial(("adam",), (0, 1), 60, (2.0, 2.0), ends, verdict, after - 2.0, interval)
        )

    assert told(0.4, (-1.9, -1.3)) == "-1.60 [-1.90, -1.30]"
    assert told(-1.1e11, (-1.2e11, -1e11)) == "-1e+11 [-1e+11, -1e+11]"
    assert told(1.99, (-0.02, -0.0004)) == "-0.01 [-0.02, -0.0004]"
    assert told(0.4, (-9.0, 5.0)) == "-1.60, all lower"
    assert told(2.0, (-0.1, 0.1), "no effect") == "+0.00 [-0.10, 0.10]"
    both = Trial(("adam",), (0,), 60, (math.inf,), (math.inf,), "no effect", 0.0)
    assert effect_of(both) == "breaks as well"


def test_a_trial_that_crashed_is_told_by_its_exception() -> None:
    why = """Traceback (most recent call last):
  File "train.py", line 3, in <module>
RuntimeError: Error(s) in loading state_dict for Net:
\tUnexpected key(s) in state_dict: "norm.weight".
"""
    rows = (
        Trial((), (0,), 60, (2.0,), (2.0,), "no effect"),
        Trial(("batch-norm",), (0,), 60, (2.0,), (math.inf,), "crashed", why=why),
    )
    assert besides(Cure(rows), UNICODE) == [
        "batch-norm: RuntimeError: Error(s) in loading state_dict for Net"
    ]
