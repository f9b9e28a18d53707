"""Gradients by numbers alone, against closed forms, and what f may not do."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from steadygrad import numerics

METHODS = ("central", "forward", "complex", "richardson")


def quartic(x):
    return x**4


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("x", "slope"), [(1.0, 4.0), (2.0, 32.0), (3.0, 108.0), (4.0, 256.0)])
def test_the_worked_example(method, x, slope):
    found = numerics.gradient(quartic, x, method)
    assert found.value == pytest.approx(slope, rel=1e-7)
    assert abs(found.value - slope) <= found.error
    assert found.doubts == ()


def test_the_popular_one_liner_lacks_parentheses():
    h = 1e-7
    assert quartic(3.0 + h) - quartic(3.0) / h == pytest.approx(-8.1e8)
    assert (quartic(3.0 + h) - quartic(3.0)) / h == pytest.approx(108.0, rel=1e-5)


def test_a_step_of_1e_7_is_lost_in_float32():
    with pytest.raises(ValueError, match=r"next number is 2.38e-07 away: leave step out"):
        numerics.gradient(quartic, np.float32(3.0), step=1e-7 / 3)


@pytest.mark.parametrize("method", ["central", "forward", "richardson"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_errors_are_not_larger_than_estimated(method, dtype):
    x = np.linspace(0.3, 2.0, 20).astype(dtype)
    for f, df in (
        (lambda x: np.sin(x).sum(), np.cos(x.astype(float))),
        (lambda x: np.exp(x).sum(), np.exp(x.astype(float))),
        (lambda x: (1 / x).sum(), -1 / x.astype(float) ** 2),
    ):
        found = numerics.gradient(f, x, method)
        assert (np.abs(found.value - df) <= 3 * found.error).mean() > 0.9


def test_the_complex_step_is_exact_to_rounding():
    x = np.linspace(0.1, 3.0, 7)
    found = numerics.gradient(lambda x: (np.exp(x) * np.sin(x)).sum(), x, "complex")
    np.testing.assert_allclose(found.value, np.exp(x) * (np.sin(x) + np.cos(x)), rtol=1e-14)


@pytest.mark.parametrize("f", [np.abs, lambda x: max(x.real, 0.0) ** 2, math.sin])
def test_the_complex_step_refuses_what_is_not_analytic(f):
    with pytest.raises(ValueError, match="method='richardson'"):
        numerics.gradient(f, 1.0, "complex")


def test_richardson_passes_over_steps_outside_the_domain():
    found = numerics.gradient(np.log, 0.05, "richardson")
    assert found.value == pytest.approx(20.0, rel=1e-9)


def test_tensors_and_arrays_give_the_same():
    x = np.array([[0.5, 1.5], [2.5, -1.0]])
    ours = numerics.gradient(lambda x: (x.cos() ** 2).sum(), torch.tensor(x))
    theirs = numerics.gradient(lambda x: (np.cos(x) ** 2).sum(), x)
    np.testing.assert_allclose(ours.value, theirs.value, rtol=1e-9)
    assert ours.value.shape == (2, 2)


def test_a_jacobian_has_outputs_first():
    found = numerics.jacobian(
        lambda x: np.array([x[0] * x[1], x[1] ** 2, x[0]]), np.array([2.0, 3.0])
    )
    np.testing.assert_allclose(found.value, [[3, 2], [0, 6], [1, 0]], atol=1e-8)


@pytest.mark.parametrize("method", ["central", "richardson"])
def test_a_kink_and_a_jump_are_told(method):
    kink = numerics.gradient(abs, 0.0, method)
    assert kink.error >= 1.0
    assert "input 0: f has a kink" in kink.doubts[0]
    jump = numerics.gradient(np.floor, 1.0, method)
    assert jump.error == math.inf
    assert "jumps" in jump.doubts[0]


def test_what_is_known_is_kept_beside_what_is_not():
    found = numerics.gradient(lambda x: np.sqrt(x).sum(), np.array([0.0, 4.0]))
    assert found.value[1] == pytest.approx(0.25)
    assert found.error[0] == math.inf
    assert "input 0: f is not finite" in found.doubts[0]


def test_many_doubts_are_told_by_number():
    found = numerics.gradient(lambda x: np.abs(x).sum(), np.zeros(10))
    assert len(found.doubts) == 4
    assert found.doubts[-1].startswith("7 more inputs")


def mutates(x):
    x *= 2
    return x.sum()


@pytest.mark.parametrize(
    ("f", "x", "error", "says"),
    [
        (lambda x: x, np.ones(3), ValueError, r"got shape \[3\]: sum it, or use jacobian"),
        (np.sum, np.ones(3, int), TypeError, "got int64"),
        (torch.sum, torch.ones(3, dtype=torch.bfloat16), TypeError, "got bfloat16"),
        (lambda x: math.nan * x, 1.0, ValueError, "got nan: differences need a value"),
        (mutates, np.ones(2), ValueError, "writes into it"),
        (lambda x: "1", 1.0, TypeError, "got str"),
        (lambda x: x * 1j, 1.0, TypeError, "real numbers, got complex"),
        (
            lambda x: x[x > 1.0],
            np.array([1.0, 2.0]),
            ValueError,
            "numbers everywhere",
        ),
    ],
)
def test_a_sentence_for_what_f_may_not_do(f, x, error, says):
    with pytest.raises(error, match=says):
        numerics.gradient(f, x)


def test_an_unknown_method_and_a_senseless_step_are_refused():
    with pytest.raises(ValueError, match="one of central, forward, complex, richardson"):
        numerics.gradient(np.sin, 1.0, "simplex")
    with pytest.raises(ValueError, match="positive share"):
        numerics.gradient(np.sin, 1.0, step=-1.0)


def test_the_users_array_is_left_alone():
    x = np.array([1.0, 2.0])
    numerics.gradient(lambda x: (x**2).sum(), x)
    np.testing.assert_array_equal(x, [1.0, 2.0])
