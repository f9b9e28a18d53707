"""Gradient descent: it converges, oscillates, or diverges, and says which."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from steadygrad import numerics


def bowl(x):
    return 0.5 * 10.0 * x**2  # f'' = 10: stable below lr = 0.2


@pytest.mark.parametrize(
    ("lr", "reason", "oscillates"),
    [(0.05, "converged", False), (0.19, "converged", True), (0.21, "diverged", True)],
)
def test_a_quadratic_has_its_boundary_at_two_over_the_curvature(lr, reason, oscillates):
    path = numerics.descend(bowl, 1.0, lr)
    assert (path.reason, path.oscillates) == (reason, oscillates)


def test_on_the_boundary_it_goes_on_for_ever():
    path = numerics.descend(bowl, 1.0, 0.2, max_steps=50, slope=lambda x: 10 * x)
    assert path.reason == "budget"
    np.testing.assert_allclose(np.abs(path.points), 1.0)


def test_a_path_is_the_textbooks():
    path = numerics.descend(lambda x: x**2, torch.tensor(1.0, dtype=torch.float64), 0.25, tol=0.1)
    np.testing.assert_allclose(path.points, [1, 0.5, 0.25, 0.125, 0.0625, 0.03125])
    np.testing.assert_allclose(path.values, path.points**2)
    np.testing.assert_allclose(path.norms, 2 * path.points)
    assert path.says == "the gradient is 0.0625 at step 5"


def test_an_explosion_ends_before_its_first_nan():
    path = numerics.descend(lambda x: x**4, 2.0, 0.5)
    assert path.reason == "diverged"
    assert np.isfinite(path.points).all()
    assert "lr = 0.5 is too large" in path.says


def test_a_cliff_into_nan_is_told_with_the_step():
    path = numerics.descend(lambda x: np.log(x), 0.1, 0.5, slope=lambda x: 1 / x)
    assert path.reason == "diverged"
    assert "f is nan at step 1" in path.says


@pytest.mark.parametrize("rule", ["momentum", "rmsprop", "adam"])
def test_the_rules_of_torch_reach_the_minimum(rule):
    path = numerics.descend(
        lambda x: ((x - 1) ** 2).sum(), torch.zeros(3), 0.05, 1e-4, 3000, rule=rule
    )
    assert path.reason == "converged"
    np.testing.assert_allclose(path.points[-1], 1.0, atol=1e-3)


def test_an_optimizer_of_ones_own():
    made = numerics.descend(
        bowl, 1.0, 1.0, rule=lambda parameters: torch.optim.SGD(parameters, lr=0.05)
    )
    assert made.reason == "converged"


def test_the_start_is_left_alone():
    x = torch.ones(2)
    numerics.descend(lambda x: x.square().sum(), x, 0.1, max_steps=3)
    assert torch.equal(x, torch.ones(2))
    assert x.grad is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"lr": -1.0}, "lr to be positive"),
        ({"lr": math.nan}, "lr to be positive"),
        ({"max_steps": 0}, "at least 1"),
        ({"rule": "lion"}, "one of sgd, momentum, rmsprop, adam"),
        ({"f": lambda x: np.array([x, x])}, "return one number"),
    ],
)
def test_a_sentence_for_what_cannot_be_descended(change, says):
    with pytest.raises(ValueError, match=says):
        numerics.descend(**{"f": bowl, "x0": 1.0, "lr": 0.1, **change})
