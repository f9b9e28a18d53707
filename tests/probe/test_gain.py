"""Compare measured gains with exact ones, and see that the module is left alone."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from steadygrad.core import theory
from steadygrad.probe.gain import critical, critical_line, gain


def squared_relu(x):
    return torch.relu(x) ** 2


ACTIVATIONS = {
    "ReLU": nn.ReLU(),
    "LeakyReLU-.01": nn.LeakyReLU(0.01),
    "LeakyReLU-.1": nn.LeakyReLU(0.1),
    "LeakyReLU-.2": nn.LeakyReLU(0.2),
    "PReLU": nn.PReLU(),
    "ELU": nn.ELU(),
    "CELU": nn.CELU(),
    "SELU": nn.SELU(),
    "GELU": nn.GELU(),
    "GELU-tanh": nn.GELU("tanh"),
    "SiLU": nn.SiLU(),
    "Mish": nn.Mish(),
    "Hardswish": nn.Hardswish(),
    "Tanh": nn.Tanh(),
    "Hardtanh": nn.Hardtanh(),
    "Softsign": nn.Softsign(),
    "Sigmoid": nn.Sigmoid(),
    "Hardsigmoid": nn.Hardsigmoid(),
    "Softplus": nn.Softplus(),
    "ReLU^2": squared_relu,
    "sin": torch.sin,
}

# E f, E f^2, Var f, E f'^2, g_fwd, g_bwd, g_std, chi, eta, NLC^2: by adaptive quadrature
EXACT = """
ReLU           .39894 .500000 .340845 .500000 1.41421 1.41421 1.71286 1.0000 1.0000 1.4669
LeakyReLU-.01  .39495 .500050 .344062 .500050 1.41414 1.41414 1.70483 1.0000 1.0000 1.4534
LeakyReLU-.1   .35905 .505000 .376084 .505000 1.40720 1.40720 1.63064 1.0000 1.0000 1.3428
LeakyReLU-.2   .31915 .520000 .418141 .520000 1.38675 1.38675 1.54646 1.0000 1.0000 1.2436
PReLU          .29921 .531250 .441725 .531250 1.37199 1.37199 1.50461 1.0000 1.0000 1.2027
ELU            .16052 .644945 .619179 .668102 1.24520 1.22343 1.27084 1.0359 .8910 1.0790
CELU           .16052 .644945 .619179 .668102 1.24520 1.22343 1.27084 1.0359 .8910 1.0790
SELU           .00000 1.000000 1.000000 1.071575 1.00000 .96603 1.00000 1.0716 .7826 1.0716
GELU           .28209 .425221 .345644 .455851 1.53353 1.48111 1.70093 1.0720 1.1441 1.3188
GELU-tanh      .28209 .425221 .345644 .455851 1.53353 1.48111 1.70093 1.0720 1.1441 1.3188
SiLU           .20662 .355776 .313083 .379482 1.67653 1.62332 1.78719 1.0666 1.1726 1.2121
Mish           .24040 .452342 .394548 .479084 1.48685 1.44476 1.59203 1.0591 1.0763 1.2143
Hardswish      .16622 .331567 .303939 .358532 1.73666 1.67008 1.81387 1.0813 1.2239 1.1796
Tanh           .00000 .394294 .394294 .464403 1.59254 1.46741 1.59254 1.1778 .4611 1.1778
Hardtanh       .00000 .516059 .516059 .682689 1.39204 1.21029 1.39204 1.3229 .3851 1.3229
Softsign       .00000 .183014 .183014 .227671 2.33753 2.09578 2.33753 1.2440 .4767 1.2440
Sigmoid        .50000 .293379 .043379 .044836 1.84623 4.72265 4.80131 .1528 .1063 1.0336
Hardsigmoid    .50000 .277639 .027639 .027703 1.89784 6.00812 6.01503 .0998 .0971 1.0023
Softplus       .80606 .921246 .271515 .293379 1.04187 1.84623 1.91913 .3185 .4921 1.0805
ReLU^2         .50000 1.50000 1.25000 2.00000 .81650 .70711 .89443 1.3333 2.0000 1.6000
sin            .00000 .432332 .432332 .567668 1.52087 1.32725 1.52087 1.3130 .3130 1.3130
"""
TABLE = {name: row for name, *row in map(str.split, EXACT.strip().splitlines())}


def columns(g: theory.Gain) -> list[float]:
    return [
        g.mean, g.second_moment, g.variance, g.slope, g.forward,
        g.backward, g.standardising, g.chi, g.eta, g.nlc**2,
    ]  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_gains_match_the_exact_table(name):
    # 2e-4: the grid's own error is 1e-4 in a moment, and up to twice that in a ratio of two.
    # Squared ReLU grows as x^2 and loses 9e-4 in the tail. Half a digit of the table is added.
    relative = 1e-3 if name == "ReLU^2" else 2e-4
    for measured, digits in zip(columns(gain(ACTIVATIONS[name])), TABLE[name], strict=True):
        exact, half_digit = float(digits), 0.5 * 10.0 ** -len(digits.partition(".")[2])
        assert measured == pytest.approx(exact, rel=0, abs=half_digit + relative * exact)


def test_published_scaled_weight_gains_lie_within_their_monte_carlo_error():
    published = {nn.GELU(): 1.70150, nn.ReLU(): 1.71396, nn.SiLU(): 1.78813, nn.Tanh(): 1.59391}
    for activation, gamma in published.items():
        assert gain(activation).standardising == pytest.approx(gamma, rel=9e-4)


def test_selu_needs_no_gain_where_torch_says_three_quarters():
    assert gain(nn.SELU()).forward == pytest.approx(1.0, rel=1e-4)


def test_a_learned_slope_is_read_from_the_module():
    prelu = nn.PReLU(init=0.6)
    assert gain(prelu).slope == pytest.approx((1 + 0.6**2) / 2, rel=1e-4)


def test_a_sequence_of_activations_is_an_activation():
    assert gain(nn.Sequential(nn.Identity(), nn.Tanh())) == gain(nn.Tanh())


def test_in_place_and_functional_forms_agree():
    assert gain(nn.ReLU(inplace=True)) == gain(nn.ReLU()) == gain(functional.relu)


def test_a_scale_invariant_activation_has_one_gain_at_every_q():
    assert gain(nn.ReLU(), q=100.0).forward == pytest.approx(gain(nn.ReLU()).forward)
    assert gain(nn.Tanh(), q=100.0).forward > 9.0


def test_a_step_has_no_slope():
    assert gain(torch.sign).slope == 0.0
    assert gain(lambda x: (x > 0).double()).backward == math.inf


def test_half_precision_modules_are_measured_in_double():
    assert gain(nn.PReLU(init=0.5).half()) == gain(nn.PReLU(init=0.5))


def test_gains_are_measured_whatever_the_gradient_mode():
    exact = gain(nn.GELU())
    with torch.no_grad():
        assert gain(nn.GELU()) == exact
    with torch.inference_mode():
        assert gain(nn.GELU()) == exact


class PerChannel(nn.Module):
    def forward(self, x):
        return x * torch.arange(x.shape[-1])


class Cumulative(nn.Module):
    def forward(self, x):
        return x.cumsum(-1)


class Pair(nn.Module):
    def forward(self, x):
        return x, x


@pytest.mark.parametrize(
    ("activation", "reason"),
    [
        (nn.Softmax(dim=-1), "changes other outputs"),
        (nn.Softmax(dim=1), "changes other outputs"),
        (nn.GLU(), "turns shape"),
        (nn.LayerNorm(8), "changes other outputs"),
        (nn.PReLU(4), "cannot take any shape"),
        (nn.Linear(8, 8), "changes other outputs"),
        (nn.Embedding(8, 8), "cannot take any shape"),
        (nn.MultiheadAttention(8, 2), "cannot take any shape"),
        (nn.MaxPool2d(2), "turns shape"),
        (Cumulative(), "changes other outputs"),
        (PerChannel(), "on where an element stands"),
        (Pair(), "returns a tuple"),
        (lambda x: x / x.norm(), "changes other outputs"),
        (functional.dropout, "or chance"),
    ],
    ids=lambda value: type(value).__name__ if callable(value) else value,
)
def test_what_is_not_elementwise_is_refused(activation, reason):
    with pytest.raises(ValueError, match=f"is not an elementwise activation: .*{reason}"):
        gain(activation)


def test_an_activation_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match=r"log or its slope is not finite on all of N\(0, 1\)"):
        gain(torch.log)


def test_the_module_and_the_random_state_are_left_as_found():
    calls = []
    module = nn.Sequential(nn.PReLU(), nn.RReLU())
    module[0].weight.grad = torch.ones(1)
    module.register_forward_hook(lambda *_: calls.append("own"))
    module[0].register_forward_hook(lambda *_: calls.append("child"))
    before, state = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    gain(module)
    assert torch.equal(module.state_dict()["0.weight"], before["0.weight"])
    assert module[0].weight.dtype == torch.float32
    assert torch.equal(module[0].weight.grad, torch.ones(1))
    assert module.training
    assert module[1].training
    assert calls == []
    assert torch.equal(torch.get_rng_state(), state)


def test_a_random_callable_does_not_move_the_random_state():
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match="or chance"):
        gain(functional.dropout)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_watching_object_is_not_copied_with_the_module():
    class Watcher:
        def __deepcopy__(self, memo):
            raise AssertionError("copied")

        def hook(self, *_):
            raise AssertionError("called")

    module = nn.Tanh()
    module.register_forward_hook(Watcher().hook)
    assert gain(module) == gain(nn.Tanh())


def test_the_critical_pairs_of_gelu_and_silu():
    pair = critical(nn.GELU())
    assert (pair.bias, pair.weight) == pytest.approx((0.17292239, 1.98305826), abs=1e-8)
    pair = critical(nn.SiLU())
    assert (pair.bias, pair.weight) == pytest.approx((0.55514317, 1.98800468), abs=1e-8)


@pytest.mark.parametrize("activation", [nn.Mish(), nn.Hardswish()])
def test_every_unstable_gain_has_a_critical_pair_instead(activation):
    pair = critical(activation)
    assert gain(activation).eta > 1
    at = gain(activation, pair.second_moment)
    # 1e-3: the coarse grid against the fine rule that found the pair
    assert pair.weight * at.slope == pytest.approx(1.0, rel=1e-3)
    assert pair.weight * at.second_moment + pair.bias == pytest.approx(pair.second_moment, rel=1e-3)


@pytest.mark.parametrize(
    ("activation", "reason"),
    [
        (nn.ReLU(), "ReLU: .*every K is critical"),
        (nn.Tanh(), "Tanh: .*no critical pair: chi_par stays below"),
        (nn.Softplus(), "Softplus: .*no critical pair: chi_par stays above"),
        (nn.Softmax(-1), "Softmax is not an elementwise activation"),
    ],
)
def test_what_has_no_critical_pair_says_why(activation, reason):
    with pytest.raises(ValueError, match=reason):
        critical(activation)


def test_the_critical_line_of_tanh_is_that_of_theory():
    weight, second_moment = critical_line(nn.Tanh(), 0.05)
    assert weight == pytest.approx(1.76095, abs=1e-5)
    assert theory.length_map(np.tanh, second_moment, weight, 0.05) == pytest.approx(second_moment)
    with pytest.raises(ValueError, match="ReLU: no weight variance is critical"):
        critical_line(nn.ReLU(), 0.05)
