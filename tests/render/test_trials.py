"""The table of a cure can be read."""

from __future__ import annotations

import re

from steadygrad.core.trial import Cure, Trial
from steadygrad.render.trials import table
from steadygrad.render.words import UNICODE


def test_the_columns_stand_apart_for_two_seeds() -> None:
    untouched = Trial((), (0, 1), 60, (2.0, 2.0), (2.0, 2.0), "no effect")
    head = next(iter(table(Cure((untouched,)), 80, UNICODE))).plain
    assert re.search(r"loss after 60 steps {2,}against no change {2,}verdict", head)
