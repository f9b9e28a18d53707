"""Every policy keeps the contract, and the published rules show why there is one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import steadygrad as sg
from steadygrad.guards.policies import POLICIES
from steadygrad.testing import check_policy
from steadygrad.testing.policy import Run, _sequence

MAKE: dict[str, Callable[[], sg.Policy]] = {
    "clip_norm": lambda: sg.clip_norm(5.0),
    "clip_value": lambda: sg.clip_value(0.5),
    "clip_agc": lambda: sg.clip_agc(0.5),
    "clip_quantile": lambda: sg.clip_quantile(0.9),
    "clip_zscore": lambda: sg.clip_zscore(max_norm=None),
    "clip_adagc": lambda: sg.clip_adagc(absolute=10.0),
    "skip_nonfinite": lambda: sg.skip_nonfinite(name="again"),
    "skip_outlier": sg.skip_outlier,
    "stop_after": lambda: sg.stop_after(5),
    "lr_backoff": lambda: sg.lr_backoff(recover=20),
    "rollback": lambda: sg.rollback(after=5, every=20),
}
CLIPS = {name for name in MAKE if name.startswith("clip")} | {"skip_outlier"}


def test_every_policy_is_looked_at() -> None:
    assert list(MAKE) == [one.__name__ for one in POLICIES]


@pytest.mark.parametrize("name", MAKE)
def test_a_policy_keeps_the_contract(name: str) -> None:
    check_policy(MAKE[name], clips=name in CLIPS)


# --- The published rules, as published -----------------------------------------------------------


class Published:
    """A published rule behind skip_nonfinite, so that the NaN reaches its statistics alone."""

    def __init__(self, rule: Callable[[float], float]) -> None:
        self.name, self.rule, self.limit = "published", rule, math.inf

    def decide(self, gradients: sg.Gradients) -> sg.Decision:
        assert isinstance(gradients.total, float)
        self.limit = self.rule(gradients.total)
        above = gradients.total > self.limit
        return sg.Decision(divide=gradients.total / self.limit if above else 1.0)

    def observe(self, event: sg.Event) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None:
        pass


def autoclip() -> Callable[[float], float]:
    """Seetharaman 2020: a percentile of all norms."""
    history: list[float] = []

    def limit(norm: float) -> float:
        history.append(norm)
        return float(np.percentile(history, 90))

    return limit


def zclip() -> Callable[[float], float]:
    """Kumar 2025, algorithm 1: moving averages fed by the clipped norm."""
    first: list[float] = []
    state = {"mean": math.nan, "variance": math.nan}

    def limit(norm: float) -> float:
        if len(first) < 25:
            first.append(norm)
            state.update(mean=float(np.mean(first)), variance=float(np.var(first)))
            return math.inf
        std = math.sqrt(state["variance"])
        z = (norm - state["mean"]) / (std + 1e-6)
        bound = state["mean"] + 2.5 * std / (z / 2.5) if z > 2.5 else math.inf
        fed = min(norm, bound) if norm == norm else norm
        state["mean"] = 0.97 * state["mean"] + 0.03 * fed
        state["variance"] = 0.97 * state["variance"] + 0.03 * (fed - state["mean"]) ** 2
        return bound

    return limit


def olmo() -> Callable[[float], float]:
    """OLMo 2 (2024): six standard deviations above the mean of 128."""
    history: list[float] = []

    def limit(norm: float) -> float:
        history.append(norm)
        last = history[-129:-1]
        return float(np.mean(last) + 6 * np.std(last)) if len(last) >= 64 else math.inf

    return limit


@pytest.mark.parametrize("rule", [autoclip, zclip, olmo])
def test_a_published_rule_lets_spikes_pass_after_one_nan(
    rule: Callable[[], Callable[[float], float]],
) -> None:
    run = Run(Published(rule()))
    run.through(100)
    run.step(1e3)
    usual, clipped = run.handle.history[-2].norm, run.handle.history[-1]
    assert clipped.norm_after < 0.1 * clipped.norm, "the rule works before"
    run.step(math.nan)
    run.through(50)
    run.step(1e3)
    passed = run.handle.history[-1]
    assert passed.norm_after == passed.norm > 100 * usual, "and not after"


# --- What each does ----------------------------------------------------------------------------


def feed(policy: sg.Policy, norms: list[float]) -> None:
    for step, norm in enumerate(norms):
        policy.observe(sg.Event(step, norm, norm, norms=np.array([norm])))


def shown(norm: float) -> sg.Gradients:
    (_, gradients), *_ = _sequence(1)
    factor = norm / float(gradients.norms.norm())
    return sg.Gradients(gradients.names, gradients.parameters, gradients.norms * factor, norm, True)


def test_a_quantile_is_that_of_the_last_norms() -> None:
    policy = sg.clip_quantile(0.5, history=100)
    feed(policy, [1000.0] * 50 + list(range(1, 101)))
    assert policy.decide(shown(1.0)).threshold == pytest.approx(50.5)
    assert policy.decide(shown(101.0)).divide == pytest.approx(2.0)


def test_a_z_score_beyond_is_clipped_the_harder_the_further_out() -> None:
    policy = sg.clip_zscore(max_norm=None)
    feed(policy, [1.0, 1.2, 0.8, 1.1, 0.9] * 20)
    assert policy.decide(shown(1.1)).divide == 1.0
    near, far = policy.decide(shown(2.0)), policy.decide(shown(20.0))
    assert 1.0 < float(far.threshold) < float(near.threshold) < 2.0


def test_a_z_score_of_zero_and_norms_of_zero_are_numbers_too() -> None:
    for norms in ([1.0] * 60, [0.0] * 60):
        policy = sg.clip_zscore(max_norm=None)
        feed(policy, norms)
        assert policy.decide(shown(1.0)).divide >= 1.0
        assert policy.decide(shown(1e6)).threshold < 10.0


def test_an_outlier_is_skipped_and_a_lasting_change_is_accepted() -> None:
    policy = sg.skip_outlier(window=32)
    feed(policy, [1.0, 1.2, 0.8, 1.1, 0.9] * 8)
    assert policy.decide(shown(50.0)).skip
    assert not policy.decide(shown(1.5)).skip
    feed(policy, [50.0, 55.0, 45.0] * 8)
    assert not policy.decide(shown(50.0)).skip


def test_the_rate_goes_down_on_a_skip_and_comes_back() -> None:
    policy = sg.lr_backoff(0.5, recover=10)
    skip = sg.Event(0, math.nan, math.nan, skipped=True, by=("skip_nonfinite",))
    policy.observe(skip)
    assert policy.decide(shown(1.0)).lr == 0.5
    feed(policy, [1.0] * 5)
    assert policy.decide(shown(1.0)).lr == pytest.approx(0.75)
    feed(policy, [1.0] * 10)
    assert policy.decide(shown(1.0)).lr == 1.0


def test_a_scaler_that_calibrates_is_no_reason_to_stop_or_slow_down() -> None:
    stop, slow = sg.stop_after(2), sg.lr_backoff()
    for policy in (stop, slow):
        for step in range(5):
            policy.observe(sg.Event(step, math.inf, math.inf, skipped=True, by=("scaler",)))
    assert slow.decide(shown(1.0)).lr == 1.0


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: sg.clip_norm(0.0), "max_norm must be a finite number above 0, got 0.0"),
        (lambda: sg.clip_norm(-1.0), "max_norm must be a finite number above 0"),
        (lambda: sg.clip_norm(math.nan), "max_norm must be a finite number above 0, got nan"),
        (lambda: sg.clip_norm(math.inf), "max_norm must be a finite number above 0, got inf"),
        (lambda: sg.clip_norm("1"), "max_norm must be a number, got '1'"),  # type: ignore[arg-type]
        (lambda: sg.clip_norm(None), "max_norm must be a number, got None"),  # type: ignore[arg-type]
        (lambda: sg.stop_after(2.5), "skips must be a whole number"),  # type: ignore[arg-type]
        (lambda: sg.clip_agc(exclude=[3]), "beginnings of names"),  # type: ignore[list-item]
        (lambda: sg.clip_value(0.0), "max_value must be"),
        (lambda: sg.clip_agc(0.0), "factor must be"),
        (lambda: sg.clip_quantile(10), r"quantile must be in \[0, 1\], got 10"),
        (lambda: sg.clip_quantile(history=5, warmup=10), "history must be at least 10, got 5"),
        (lambda: sg.clip_zscore(warmup=1), "warmup must be at least 2"),
        (lambda: sg.clip_adagc(relative=0.9), "relative must be at least 1"),
        (lambda: sg.skip_outlier(window=2), "window must be at least 8"),
        (lambda: sg.stop_after(0), "skips must be at least 1"),
        (lambda: sg.lr_backoff(2.0), r"factor must be in \[0, 1\]"),
        (lambda: sg.rollback(every=0), "every must be at least 1"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(make: Callable[[], Any], says: str) -> None:
    with pytest.raises((ValueError, TypeError), match=says):
        make()
