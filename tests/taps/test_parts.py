"""The parts of a watch: when to sample, what is stale, what jumps, what was clipped."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import steadygrad as sg
from steadygrad.core.steps import Row
from steadygrad.taps import clips, held, losses, watcher
from steadygrad.taps.clips import Clips
from steadygrad.taps.jumps import Jumps
from steadygrad.taps.patch import Patch
from steadygrad.taps.rounds import Reading, Rounds, Step
from steadygrad.taps.schedule import BURST, CLOSEST, EARLY, Schedule
from steadygrad.taps.stale import Staleness
from steadygrad.taps.weights import sample

# --- When ----------------------------------------------------------------------------------------


def _sampled(schedule: Schedule, steps: int, cost: float) -> list[int]:
    found = []
    for step in range(steps):
        due = schedule.due(step)
        found += [step] if due else []
        schedule.passed(step, 1.0 + cost * due, 0.0)
    return found


def test_cheap_samples_are_taken_every_twentieth_step() -> None:
    found = _sampled(Schedule(0.01), 200, cost=0.05)

    assert tuple(found[: len(EARLY)]) == EARLY
    assert set(np.diff(found[len(EARLY) :])) == {CLOSEST}


@pytest.mark.parametrize(("share", "cost"), [(0.01, 0.5), (0.01, 2.0), (0.1, 4.0)])
def test_dear_samples_cost_no_more_than_their_share(share: float, cost: float) -> None:
    steps = 4000

    found = _sampled(Schedule(share), steps, cost=cost)

    late = [step for step in found if step > 200]
    assert 0.7 * share < cost * len(late) / (steps - 200) <= 1.05 * share


def test_what_steady_readings_take_is_not_left_to_samples() -> None:
    sampled = []
    for steady in (0.0, 0.005, 0.02):
        schedule, count = Schedule(0.01), 0
        for step in range(4000):
            due = schedule.due(step)
            count += due
            schedule.passed(step, 1.0 + steady + 0.5 * due, steady + 0.5 * due)
        sampled.append(count)

    assert sampled[0] > 1.7 * sampled[1] > 1.7 * sampled[2] > 0


def test_a_burst_is_ten_steps() -> None:
    schedule = Schedule(0.01)

    schedule.burst(1000)

    assert all(schedule.due(step) for step in range(1000, 1000 + BURST))


# --- Stale gradients -----------------------------------------------------------------------------


def _loop(zero: Callable[[Tensor], object], steps: int = 5, passes: int = 1) -> Staleness:
    parameter = nn.Parameter(torch.ones(3))
    staleness = Staleness([parameter])
    for _ in range(steps):
        zero(parameter)
        for _ in range(passes):
            staleness.backward_begins()
            (parameter * torch.arange(3.0)).sum().backward()
            staleness.backward_ended()
        staleness.stepped()
    return staleness


def _none(parameter: Tensor) -> None:
    parameter.grad = None


def _zeros(parameter: Tensor) -> None:
    if parameter.grad is not None:
        parameter.grad.zero_()


@pytest.mark.parametrize("zero", [_none, _zeros])
@pytest.mark.parametrize("passes", [1, 3])
def test_zeroed_gradients_are_fresh(zero: Callable[[Tensor], object], passes: int) -> None:
    assert _loop(zero, passes=passes).stale == 0


@pytest.mark.parametrize("passes", [1, 3])
def test_gradients_that_nobody_zeroes_are_stale(passes: int) -> None:
    assert _loop(lambda _: None, steps=5, passes=passes).stale == 4


@pytest.mark.parametrize("zero", [_none, _zeros])
def test_what_another_backward_pass_leaves_is_not_stale(zero: Callable[[Tensor], object]) -> None:
    parameter = nn.Parameter(torch.ones(3))
    staleness = Staleness([parameter])
    for _ in range(5):
        for _ in range(2):  # the first pass is another network's, and finds the last step's
            staleness.backward_begins()
            (parameter * torch.arange(3.0)).sum().backward()
            staleness.backward_ended()
            zero(parameter)
        staleness.backward_begins()
        (parameter * torch.arange(3.0)).sum().backward()
        staleness.backward_ended()
        staleness.stepped()

    assert staleness.stale == 0


# --- Jumps ---------------------------------------------------------------------------------------


def test_noise_does_not_jump_and_a_tenfold_norm_does() -> None:
    draw = np.random.default_rng(0)
    jumps = Jumps()

    noise = [jumps.is_one(float(norm)) for norm in np.exp(0.3 * draw.standard_normal(2000))]

    assert not any(noise)
    assert jumps.is_one(12.0)


def test_a_slow_fall_and_a_broken_norm_do_not_jump() -> None:
    jumps = Jumps()

    assert not any(jumps.is_one(0.99**step) for step in range(1000))
    assert not jumps.is_one(math.inf)
    assert not jumps.is_one(math.nan)
    assert not jumps.is_one(0.0)


# --- Clipping ------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0.1, 100.0])
def test_what_clipping_measures_is_torchs_own(limit: float) -> None:
    gradients = [torch.randn(n + 1, 3) for n in range(7)]
    kept = Clips()

    total = kept.measure(gradients, scaled=False)
    kept.clip(limit)

    expected = nn.utils.get_total_norm(gradients)
    measured = kept.of(gradients)
    assert total is not None
    assert measured is not None
    assert torch.equal(total, expected)
    assert float(measured.factor) == pytest.approx(min(1.0, limit / float(expected)), rel=1e-4)
    torch.testing.assert_close(measured.norms, torch.stack([g.double().norm() for g in gradients]))


def test_clipping_in_parts_is_joined_and_others_are_not_taken() -> None:
    gradients = [torch.randn(4) for _ in range(4)]
    kept = Clips()
    kept.measure(gradients[:1], scaled=False)
    kept.measure(gradients[1:], scaled=False)

    joined = kept.of(gradients)

    assert joined is not None
    torch.testing.assert_close(joined.norms, torch.stack([g.double().norm() for g in gradients]))
    assert kept.of([*gradients, torch.randn(4)]) is None


# --- Weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3,), (64, 64), (300, 1000), (64, 32, 3, 3)])
def test_a_sample_tells_of_the_whole(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(shape))
    parameter.grad = torch.randn(shape)
    before = parameter.detach().clone()

    taken = sample([parameter])
    with torch.no_grad():
        parameter.add_(0.01 * torch.randn(shape))
    moves = taken.moves()

    exact = float((parameter.detach() - before).norm())
    assert float(moves["weight"]) == pytest.approx(float(before.norm()), rel=0.1)
    assert float(moves["update"]) == pytest.approx(exact, rel=0.1)
    assert float(moves["moved"]) == 1.0
    assert sum(one.numel() for one in taken.before) <= 1024 + 0.02 * parameter.numel() + 1024


# --- Rows ----------------------------------------------------------------------------------------


def test_numbers_that_come_late_make_the_same_rows() -> None:
    def rows(late: bool) -> list[Row]:
        kept: list[Row] = []
        rounds = Rounds(kept.append, lambda _: 3)
        for number in range(40):
            for place in range(2):
                norms = torch.tensor([1.0 * number, math.nan])
                reading = Reading("grad", np.array([place, 2]), norms)
                scalars = [torch.tensor(2.0), 0.1, None, 3.0, None, 1.0, 0.0, 1.0]
                rounds.add(Step(number, 0.5, place, scalars, [reading], late=late))
        rounds.close()
        return kept

    now, later = rows(late=False), rows(late=True)

    assert [row.step for row in now] == [row.step for row in later] == list(range(40))
    for one, other in zip(now, later, strict=True):
        assert one.read.keys() == other.read.keys()
        for name in one.read:
            np.testing.assert_array_equal(one.read[name], other.read[name])
    assert now[5].read["grad"].tolist() == [5.0, 5.0, math.inf]
    assert now[5].read["loss"][:2].tolist() == [2.0, 2.0]


def test_a_device_is_read_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    host = _trained()
    for module in (clips, losses, watcher):
        monkeypatch.setattr(module, "number_of", lambda tensor: tensor.detach().reshape(()))
    made = held.held

    def on_a_device(*given: Any) -> held.Held:
        one = made(*given)
        one.on_host = False
        return one

    monkeypatch.setattr(watcher, "held", on_a_device)

    device = _trained()

    assert device.metrics == host.metrics
    np.testing.assert_allclose(device.values, host.values, rtol=1e-6)


def _trained() -> sg.Record:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    with sg.watch(net, optimizer) as watch:
        for _ in range(12):
            x = torch.randn(16, 8)
            optimizer.zero_grad()
            F.cross_entropy(net(x), x[:, :3].argmax(1)).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 0.1)
            optimizer.step()
    return watch.record


# --- Replacements --------------------------------------------------------------------------------


class Owner:
    def name(self) -> str:
        return "owner"


@pytest.mark.parametrize("first", [0, 1])
def test_patches_go_in_any_order(first: int) -> None:
    original = vars(Owner)["name"]

    def around(word: str) -> Callable[..., Any]:
        return lambda run: lambda self: word + run(self)

    patches = [Patch(Owner, "name", around("a")), Patch(Owner, "name", around("b"))]
    assert Owner().name() == "baowner"
    patches[first].remove()
    assert Owner().name() == "ab"[1 - first] + "owner"
    patches[1 - first].remove()

    assert vars(Owner)["name"] is original
