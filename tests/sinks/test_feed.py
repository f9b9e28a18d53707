"""A sink that fails or hangs is said once, and neither stops a training nor changes it."""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import steadygrad as sg
from steadygrad._watch import Plan, Watch
from steadygrad.core.finding import Finding, Severity
from steadygrad.core.record import Site
from steadygrad.core.steps import Row
from steadygrad.sinks.feed import Feed
from steadygrad.testing.sink import trained


class Kept:
    """Keeps what it is given; raises where it is told to."""

    def __init__(self, fails: str = "") -> None:
        self.fails = fails
        self.calls: list[tuple[str, Any]] = []
        self.threads: set[str] = set()

    def open(self, name: str) -> None:
        self._note("open", name)

    def row(self, step: int, numbers: Mapping[str, float]) -> None:
        self._note("row", step)

    def finding(self, found: Finding) -> None:
        self._note("finding", found.code)

    def close(self) -> None:
        self._note("close", None)

    def _note(self, what: str, about: object) -> None:
        self.threads.add(threading.current_thread().name)
        if what == self.fails:
            raise OSError(f"no {what}")
        self.calls.append((what, about))

    def told(self, what: str) -> list[object]:
        return [about for name, about in self.calls if name == what]


def train(watched: bool, *sinks: Kept) -> tuple[list[Tensor], list[str]]:
    """Train, and return the weights and what was said."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    said: list[str] = []
    watch = Watch((model,), (optimizer,), Plan(say=said.append, to=sinks)) if watched else None
    for _ in range(25):
        x = torch.randn(16, 8)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), x[:, :3].argmax(1)).backward()
        optimizer.step()
    if watch is not None:
        watch.close()
    return [one.detach() for one in model.parameters()], said


def test_a_sink_is_told_in_order_from_a_thread_of_its_own() -> None:
    kept = Kept()
    trained(kept, [].append)
    order = [name for name, _ in kept.calls]
    assert (order[0], order[-1]) == ("open", "close")
    assert kept.told("open") == ["contract"]
    assert kept.told("row") == [0, 1, 2, 3, 5, 7, 10]
    assert kept.told("finding") == ["G001"]
    assert kept.threads == {"steadygrad-sink"}


@pytest.mark.parametrize("fails", ["open", "row", "finding", "close"])
def test_a_fault_is_said_once(fails: str) -> None:
    said: list[str] = []
    trained(Kept(fails), said.append)
    ours = [one for one in said if "Kept" in one]
    assert ours == [f"expected to show the run in Kept, got OSError: no {fails}: training goes on"]


@pytest.mark.parametrize("fails", ["", "open", "row"])
def test_a_training_is_the_same_bit_by_bit(fails: str) -> None:
    plain, _ = train(False)
    shown, _ = train(True, Kept(fails))
    assert all(torch.equal(a, b) for a, b in zip(plain, shown, strict=True))


def test_a_sink_that_hangs_is_left_behind() -> None:
    release, said = threading.Event(), []

    class Hangs(Kept):
        def row(self, step: int, numbers: Mapping[str, float]) -> None:
            release.wait(30)

    feed = Feed(Hangs(), "", said.append)
    feed.row(Row(0, 0.0, {}), ())
    feed.close(patience=0.01)
    feed.close()
    release.set()
    assert said == [
        "expected to show the run in Hangs, got no end of it in 0.01 s: training goes on"
    ]


def test_what_a_sink_draws_to_open_is_put_back() -> None:
    class Draws(Kept):
        def open(self, name: str) -> None:
            random.random()
            super().open(name)

    kept, before = Draws(), random.getstate()
    Feed(kept, "", pytest.fail).close()
    assert kept.told("open")
    assert random.getstate() == before


def test_a_finding_is_shown_once_and_a_note_never() -> None:
    kept = Kept()
    feed = Feed(kept, "", pytest.fail)
    loud = Finding(Severity.risk, "a", ("fc",), code="G102")
    feed.findings([loud, Finding(Severity.note, "b", ("fc",), code="G105")])
    feed.close(lambda: [loud])
    assert kept.told("finding") == ["G102"]


def test_numbers_are_named_as_in_an_export() -> None:
    numbers: list[Mapping[str, float]] = []

    class Numbers(Kept):
        def row(self, step: int, given: Mapping[str, float]) -> None:
            numbers.append(given)

    sites = [Site("Adam", "step"), Site("fc.weight", "weight"), Site("fc.bias", "weight")]
    row = {"loss": [0.5], "grad": [float("inf"), float("nan")], "lr": [0.25]}
    feed = Feed(Numbers(), "", pytest.fail)
    feed.row(Row(0, 0.0, {name: torch.tensor(one).numpy() for name, one in row.items()}), sites)
    feed.close()
    assert numbers == [{"loss": 0.5, "grad/fc.weight": float("inf"), "lr": 0.25}]


def test_only_the_first_rank_writes_and_shows(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    kept = Kept()
    with sg.watch(nn.Linear(2, 2), run=tmp_path / "run", to=kept) as watch:
        assert watch.path is None
    assert kept.calls == []
