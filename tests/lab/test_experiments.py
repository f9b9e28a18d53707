"""Every experiment: it is documented, runs at a tiny size, and reaches its tolerance."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import steadygrad.lab
from steadygrad.lab.catalogue import EXPERIMENTS
from steadygrad.lab.experiment import Experiment, Plan
from steadygrad.lab.running import measured, table

pytest.importorskip("sklearn")
NAMES = [one.name for one in EXPERIMENTS]
EXACT = [one for one in EXPERIMENTS if one.name in ("jozefowicz2015", "yang2019")]


def test_names_are_papers_files_and_in_the_order_of_years() -> None:
    years = [int(name[-4:]) for name in NAMES]
    assert years == sorted(years)
    assert len(set(NAMES)) == len(NAMES)
    home = Path(steadygrad.lab.__file__).parent
    assert {path.stem for path in home.glob("*[0-9].py")} == set(NAMES)


@pytest.mark.parametrize("one", EXPERIMENTS, ids=NAMES)
def test_an_experiment_says_what_why_and_how(one: Experiment) -> None:
    assert one.claim[0].isupper()
    assert one.source.split()[0].rstrip(",") != ""
    assert one.page.splitlines()[0].endswith("."), "its page opens with a sentence"
    for said in (one.published, one.tolerance, one.source):
        assert len(said) > 10


@pytest.mark.parametrize("one", EXPERIMENTS, ids=NAMES)
def test_a_tiny_size_runs_and_leaves_the_random_state_alone(one: Experiment) -> None:
    state = torch.get_rng_state()
    outcome = measured(one, Plan("tiny"))
    assert torch.equal(state, torch.get_rng_state())
    assert outcome.result.measures
    assert all(len(row) == len(outcome.result.header) for row in outcome.result.rows)
    assert all(len(curve.x) == len(curve.y) for curve in outcome.result.figure.curves)
    assert one.claim in table(outcome)


@pytest.mark.parametrize("one", EXACT, ids=lambda one: one.name)
def test_a_quick_one_is_within_its_tolerance_at_another_seed(one: Experiment) -> None:
    outcome = measured(one, Plan(seed=1))
    assert outcome.result.within, table(outcome)


@pytest.mark.long
@pytest.mark.parametrize("one", EXPERIMENTS, ids=NAMES)
def test_it_reproduces(one: Experiment) -> None:
    outcome = measured(one, Plan())
    assert outcome.result.within, table(outcome)
