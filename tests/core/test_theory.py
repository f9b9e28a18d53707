"""Compare every law with a published number, a closed form, or real torch modules."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from steadygrad.core import theory

ERF = np.vectorize(math.erf, otypes=[float])


def tanh(x):
    return np.tanh(x)


def tanh_slope(x):
    return 1.0 - np.tanh(x) ** 2


def relu(x):
    return np.maximum(x, 0.0)


def relu_slope(x):
    return (x > 0).astype(float)


def sigmoid(x):
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def silu(x):
    return x * sigmoid(x)


def silu_slope(x):
    return sigmoid(x) * (1.0 + x * (1.0 - sigmoid(x)))


def gelu(x):
    return x * 0.5 * (1.0 + ERF(x / math.sqrt(2)))


def gelu_slope(x):
    return 0.5 * (1.0 + ERF(x / math.sqrt(2))) + x * np.exp(-0.5 * x**2) / math.sqrt(2 * math.pi)


@pytest.fixture
def random():
    return torch.Generator().manual_seed(0)


def normal(random, *shape, std=1.0):
    return std * torch.randn(*shape, generator=random)


def square(x: Tensor) -> float:
    return float(x.double().pow(2).sum())


def backward_factor(module, x: Tensor, random) -> float:
    """Return |g_in|^2 / |g_out|^2 for one random cotangent."""
    x = x.clone().requires_grad_()
    y = module(x)
    cotangent = torch.randn(y.shape, generator=random)
    (g,) = torch.autograd.grad(y, x, cotangent)
    return square(g) / square(cotangent)


# --- The grid and the gains ---


def test_the_grid_is_symmetric_and_nearly_standard():
    z = theory.normal_grid()
    assert z.shape == (20001,)
    assert np.array_equal(z, -z[::-1])
    assert z.var() == pytest.approx(1.0, abs=1e-4)


def test_an_even_grid_has_no_node_at_zero():
    z = theory.normal_grid(10)
    assert z.shape == (10,)
    assert np.all(np.diff(z) > 0)
    assert np.array_equal(z, -z[::-1])


def test_the_cached_grid_cannot_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        theory.normal_grid()[0] = 0.0


def test_relu_keeps_half_of_the_second_moment():
    z = theory.normal_grid()
    gain = theory.gain_of(relu(z), relu_slope(z), z)
    assert gain.second_moment == pytest.approx(0.5, rel=1e-4)
    assert gain.slope == pytest.approx(0.5, rel=1e-4)
    assert gain.eta == pytest.approx(1.0)


def test_the_identity_has_every_gain_one_at_any_q():
    z = theory.normal_grid()
    gain = theory.gain_of(3.0 * z, np.ones_like(z), z, q=9.0)
    for value in (gain.forward, gain.backward, gain.standardising, gain.chi, gain.eta, gain.nlc):
        assert value == pytest.approx(1.0, rel=1e-4)


def test_eta_is_the_slope_of_the_length_map():
    z = theory.normal_grid()
    gain = theory.gain_of(tanh(1.5 * z), tanh_slope(1.5 * z), z, q=2.25)
    low, high = (theory.length_map(tanh, 2.25 * math.exp(d), 1.0, 0.0) for d in (-1e-4, 1e-4))
    assert gain.eta == pytest.approx(math.log(high / low) / 2e-4, rel=2e-4)


def test_a_constant_has_infinite_gains_and_no_error():
    z = theory.normal_grid()
    gain = theory.gain_of(np.zeros_like(z), np.zeros_like(z), z)
    assert gain.forward == gain.backward == gain.standardising == math.inf


@pytest.mark.parametrize(
    ("variance_times_fan_in", "ratio"),
    [(2.0, 1.0), (1.0, math.sqrt(1 / 2)), (1 / 3, math.sqrt(1 / 6))],
    ids=["he", "xavier", "torch default"],
)
def test_the_predicted_ratio_of_relu_layers(variance_times_fan_in, ratio):
    assert theory.predicted_ratio(variance_times_fan_in / 256, 256, 0.5) == pytest.approx(ratio)


def test_the_predicted_ratio_of_a_torch_default_relu_net(random):
    net = nn.Sequential(*(m for _ in range(6) for m in (nn.Linear(400, 400), nn.ReLU())))
    for layer in net[::2]:
        nn.init.uniform_(layer.weight, -1 / 20, 1 / 20, generator=random)
        nn.init.zeros_(layer.bias)
    measured = backward_factor(net, normal(random, 200, 400), random) ** (0.5 / 6)
    predicted = theory.predicted_ratio(1 / (3 * 400), 400, 0.5)
    assert measured == pytest.approx(predicted, rel=0.05)  # band of one draw: 3 sqrt(5 / 2400) / 2


# --- Maps over depth ---


@pytest.mark.parametrize(
    ("sigma_w2", "chi"),
    [(0.8, 0.6468), (1.0, 0.7590), (1.3, 0.8802), (1.7603, 0.9999), (2.5, 1.1335), (4.0, 1.3424)],
)
def test_chi_of_tanh_nets_as_published(sigma_w2, chi):
    q = theory.fixed_point(tanh, sigma_w2, 0.05)
    assert theory.length_map(tanh, q, sigma_w2, 0.05) == pytest.approx(q, rel=1e-12)
    assert theory.chi1(tanh_slope, q, sigma_w2) == pytest.approx(chi, abs=6e-5)


def test_tanh_at_torch_gain_is_chaotic():
    q = theory.fixed_point(tanh, 25 / 9, 0.0)
    assert q == pytest.approx(1.1785, abs=6e-5)
    assert theory.chi1(tanh_slope, q, 25 / 9) == pytest.approx(1.2098, abs=6e-5)


def test_fixed_points_at_the_ends():
    assert theory.fixed_point(relu, 1.0, 0.0) == 0.0
    assert theory.fixed_point(relu, 3.0, 0.0) == math.inf
    assert theory.fixed_point(relu, 2.0, 0.0, start=7.0) == 7.0
    assert theory.fixed_point(relu, 1.0, 0.5) == pytest.approx(1.0)


def test_the_fixed_point_is_where_iteration_ends():
    q = 5.0
    for _ in range(200):
        q = theory.length_map(tanh, q, 2.0, 0.1)
    assert theory.fixed_point(tanh, 2.0, 0.1) == pytest.approx(q, rel=1e-10)


def test_the_depth_scale():
    assert theory.depth_scale(math.exp(-0.1)) == pytest.approx(10.0)
    assert theory.depth_scale(1.0) == math.inf
    assert theory.depth_scale(0.0) == 0.0


def test_in_the_ordered_phase_correlation_and_gradient_scales_agree():
    q = theory.fixed_point(tanh, 1.0, 0.05)
    scale = theory.correlation_scale(tanh, tanh_slope, q, 1.0, 0.05)
    assert scale == pytest.approx(1 / abs(math.log(0.7590)), rel=1e-3)


def test_in_the_chaotic_phase_the_correlation_scale_is_the_map_s_slope():
    q = theory.fixed_point(tanh, 2.5, 0.05)
    scale = theory.correlation_scale(tanh, tanh_slope, q, 2.5, 0.05)
    c, path = 0.9, []
    for _ in range(150):
        c = theory.correlation_map(tanh, c, q, 2.5, 0.05)
        path.append(c)
    decay = (path[-1] - path[-2]) / (path[-2] - path[-3])
    assert math.exp(-1 / scale) == pytest.approx(decay, rel=1e-3)


def test_the_correlation_map_keeps_one():
    q = theory.fixed_point(tanh, 2.5, 0.05)
    assert theory.correlation_map(tanh, 1.0, q, 2.5, 0.05) == pytest.approx(1.0)


# --- Critical initialization ---


@pytest.mark.parametrize(("sigma_b2", "sigma_w2"), [(0.05, 1.76095), (2.01e-5, 1.0499956)])
def test_the_critical_line_of_tanh(sigma_b2, sigma_w2):
    found = theory.critical_weight_variance(tanh, tanh_slope, sigma_b2)
    assert found == pytest.approx(sigma_w2, rel=3e-6 if sigma_b2 == 0.05 else 1e-7)
    q = theory.fixed_point(tanh, found, sigma_b2)
    assert theory.chi1(tanh_slope, q, found) == pytest.approx(1.0, abs=1e-9)


def test_without_bias_tanh_is_critical_at_one_and_relu_at_two():
    assert theory.critical_weight_variance(tanh, tanh_slope, 0.0) == pytest.approx(1.0, abs=1e-8)
    assert theory.critical_weight_variance(relu, relu_slope, 0.0) == pytest.approx(2.0)


def test_relu_with_a_bias_has_no_critical_weight():
    with pytest.raises(ValueError, match=r"no weight variance is critical at sigma_b2 = 0.1"):
        theory.critical_weight_variance(relu, relu_slope, 0.1)


@pytest.mark.parametrize(
    ("f", "slope", "bias", "weight", "second_moment"),
    [
        (gelu, gelu_slope, 0.17292239, 1.98305826, 3.56155),
        (silu, silu_slope, 0.55514317, 1.98800468, 14.32017),
    ],
    ids=["gelu", "silu"],
)
def test_the_critical_pairs_of_the_book(f, slope, bias, weight, second_moment):
    pair = theory.critical_pair(f, slope)
    assert pair.bias == pytest.approx(bias, abs=1e-8)
    assert pair.weight == pytest.approx(weight, abs=1e-8)
    assert pair.second_moment == pytest.approx(second_moment, abs=6e-6)


def test_a_critical_pair_is_a_fixed_point_with_both_slopes_one():
    pair = theory.critical_pair(silu, silu_slope)
    k, step = pair.second_moment, 1e-3
    low, at, high = (
        theory.length_map(silu, q, pair.weight, pair.bias) for q in (k - step, k, k + step)
    )
    assert at == pytest.approx(k, rel=1e-12)
    assert (high - low) / (2 * step) == pytest.approx(1.0, abs=1e-6)
    assert theory.chi1(silu_slope, k, pair.weight) == pytest.approx(1.0, abs=1e-12)


def test_relu_has_no_single_critical_point():
    with pytest.raises(ValueError, match=r"Var\(b\) = 0 and Var\(W\) \* fan_in = 2$"):
        theory.critical_pair(relu, relu_slope)


def test_a_flat_activation_is_never_critical():
    for ask in (theory.critical_pair, lambda f, df: theory.critical_weight_variance(f, df, 0.1)):
        with pytest.raises(ValueError, match="slope is 0 everywhere"):
            ask(np.sign, np.zeros_like)


def test_a_shrinking_activation_is_critical_at_every_k_where_it_has_a_slope():
    def shrink(x):
        return x - np.clip(x, -0.5, 0.5)

    # C_b = a phi(a) / Q(a) - a^2 at a = 1/2
    with pytest.raises(ValueError, match=r"every K is critical: at K = 1 use Var\(b\) = 0.320539 "):
        theory.critical_pair(shrink, lambda x: (np.abs(x) > 0.5).astype(float))


def test_rounding_noise_is_not_a_critical_pair():
    def hardtanh_slope(x):
        return (np.abs(x) < 1).astype(float)

    with pytest.raises(ValueError, match="no critical pair"):
        theory.critical_pair(lambda x: np.clip(x, -1, 1), hardtanh_slope)


def test_tanh_has_no_critical_pair():
    with pytest.raises(ValueError, match="stays below"):
        theory.critical_pair(tanh, tanh_slope)


# --- Norms, on real modules. Tolerance 2 %: about 3 standard errors at these sample sizes ---


def test_layer_norm_factor(random):
    measured = backward_factor(nn.LayerNorm(64), normal(random, 4000, 64, std=3.0), random)
    assert measured == pytest.approx(theory.layer_norm_factor(9.0, 64), rel=0.02)


def test_a_norm_s_weight_enters_squared(random):
    norm = nn.LayerNorm(16)
    nn.init.constant_(norm.weight, 0.5)
    measured = backward_factor(norm, normal(random, 20000, 16), random)
    assert measured == pytest.approx(theory.layer_norm_factor(1.0, 16, weight=0.5), rel=0.02)


def test_rms_norm_factor(random):
    measured = backward_factor(nn.RMSNorm(16), normal(random, 20000, 16, std=3.0), random)
    assert measured == pytest.approx(theory.rms_norm_factor(9.0, 16), rel=0.02)


def test_batch_norm_factor(random):
    measured = backward_factor(nn.BatchNorm1d(20000), normal(random, 8, 20000, std=3.0), random)
    assert measured == pytest.approx(theory.batch_norm_factor(9.0, 8), rel=0.03)  # heavy tail at 8


def test_group_norm_factor(random):
    x = normal(random, 2000, 8, 4, 4, std=3.0)
    measured = backward_factor(nn.GroupNorm(4, 8), x, random)
    assert measured == pytest.approx(theory.group_norm_factor(9.0, 2 * 16), rel=0.02)


def test_a_norm_over_too_few_elements_has_no_factor():
    with pytest.raises(ValueError, match="from 4 elements on, got 3"):
        theory.layer_norm_factor(1.0, 3)
    with pytest.raises(ValueError, match="from 3 elements on, got 2"):
        theory.rms_norm_factor(1.0, 2)


def test_the_batch_norm_net_law_of_relu():
    law = theory.batch_norm_net_factor(0.5, 0.5 - 1 / (2 * math.pi))
    assert law == pytest.approx(math.pi / (math.pi - 1))


def test_a_batch_norm_relu_net_grows_by_the_law(random):
    depth, width = 12, 256
    layers = []
    for _ in range(depth):
        linear = nn.Linear(width, width, bias=False)
        nn.init.normal_(linear.weight, std=width**-0.5, generator=random)
        layers += [linear, nn.BatchNorm1d(width), nn.ReLU()]
    measured = backward_factor(nn.Sequential(*layers), normal(random, 256, width), random)
    # the first BatchNorm sees variance 1, not Var f, so that layer keeps E f'^2 = 1/2;
    # batch and width of 256 move a layer by 1 to 2 %
    per_layer = (2 * measured) ** (1 / (depth - 1))
    assert per_layer == pytest.approx(math.pi / (math.pi - 1), rel=0.02)


# --- Residuals, pooling, dropout, attention, gates ---


def test_a_residual_adds_its_branch(random):
    branch = nn.Sequential(nn.Linear(512, 512, bias=False), nn.ReLU())
    nn.init.normal_(branch[0].weight, std=(2 / 512) ** 0.5, generator=random)
    measured = backward_factor(lambda x: x + 0.5 * branch(x), normal(random, 200, 512), random)
    assert measured == pytest.approx(theory.residual_factor(1.0, 0.5), rel=0.02)


def test_plain_residuals_double_and_normalized_ones_count():
    assert theory.plain_residual_factor(10) == theory.residual_factor(1.0) ** 10
    normalized = math.prod(theory.residual_factor(1 / level) for level in range(1, 11))
    assert theory.normalized_residual_factor(10) == pytest.approx(normalized)


def test_dropout_factor(random):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        measured = backward_factor(nn.Dropout(0.2), normal(random, 100000), random)
    assert measured == pytest.approx(theory.dropout_factor(0.2), rel=0.02)


def test_max_pool_factors(random):
    x = normal(random, 100, 4, 32, 32)
    pooled = nn.functional.max_pool2d(x, 2)
    assert float(pooled.pow(2).mean()) == pytest.approx(theory.MAX_POOL_2X2_FORWARD, rel=0.01)
    assert backward_factor(nn.MaxPool2d(2), x, random) == pytest.approx(theory.MAX_POOL_BACKWARD)


def test_average_pool_factors(random):
    common, own = normal(random, 20000, 1), normal(random, 20000, 9)
    x = math.sqrt(0.3) * common + math.sqrt(0.7) * own
    measured = float(x.mean(1).pow(2).mean())
    assert measured == pytest.approx(theory.average_pool_forward(9, 0.3), rel=0.03)
    backward = backward_factor(nn.AvgPool2d(3), normal(random, 1, 1, 30, 30), random)
    assert backward == pytest.approx(theory.average_pool_backward(9))


def test_attention_spreads_over_its_tokens(random):
    weights = normal(random, 4000, 256, std=0.5).softmax(1)
    measured = float(weights.pow(2).sum(1).mean())
    assert measured == pytest.approx(theory.attention_value_factor(0.5, 256), rel=0.02)
    assert theory.attention_value_factor(9.0, 16) == 1.0
    assert theory.attention_forward(0.5, 256, correlation=1.0) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("f", "second_moment"), [("sigmoid", 0.2934), ("gelu", 0.4252), ("silu", 0.3558)]
)
def test_gated_units(f, second_moment, random):
    function, slope = {
        "sigmoid": (sigmoid, lambda x: sigmoid(x) * sigmoid(-x)),
        "gelu": (gelu, gelu_slope),
        "silu": (silu, silu_slope),
    }[f]
    z = theory.normal_grid()
    gate = theory.gain_of(function(z), slope(z), z)
    assert theory.gated_forward(gate) == pytest.approx(second_moment, rel=3e-4)

    def unit(x):
        value, arm = x.chunk(2, -1)
        return value * getattr(torch, f, getattr(nn.functional, f, None))(arm)

    x = normal(random, 1000, 400)
    measured = backward_factor(unit, x, random)
    assert measured == pytest.approx(theory.gated_backward(gate), rel=0.02)


# --- Finite width, time, spectra ---


def test_a_single_draw_varies_as_hanin_and_nica_say(random):
    draws, width, depth = 400, 50, 30
    h = normal(random, draws, width, 1)
    u = normal(random, draws, width, 1)
    u = u / u.norm(dim=1, keepdim=True)
    for _ in range(depth):
        w = normal(random, draws, width, width, std=(2 / width) ** 0.5)
        h, u = (w @ h).relu(), (w @ u) * ((w @ h) > 0)
    decades = u.norm(dim=1).log10().squeeze()
    band = theory.single_draw_band([width] * depth)
    # 400 draws give the spread to 3.5 % and the mean to .02; the law is first order in 1 / n
    assert 3 * float(decades.std()) == pytest.approx(band.half_width, rel=0.15)
    assert float(decades.mean()) == pytest.approx(band.shift, abs=0.08)


def test_the_band_at_a_depth_over_width_of_six_tenths():
    band = theory.single_draw_band([50] * 30)
    assert band.shift == pytest.approx(-0.75 / math.log(10))
    assert band.half_width == pytest.approx(1.5 * math.sqrt(3.0) / math.log(10))


@pytest.mark.parametrize(("bias", "ratio"), [(0, 0.5), (1, 0.7311), (2, 0.8808), (3, 0.9526)])
def test_the_forget_bias_sets_the_lstm_ratio(bias, ratio):
    assert theory.lstm_cell_ratio(bias) == pytest.approx(ratio, abs=5e-5)


def test_an_lstm_cell_forgets_at_its_ratio():
    cell = nn.LSTMCell(3, 5)
    for parameter in cell.parameters():
        nn.init.zeros_(parameter)
    nn.init.constant_(cell.bias_ih[5:10].data, 1.0)
    c = first = torch.ones(1, 5, requires_grad=True)
    h = torch.zeros(1, 5)
    for _ in range(7):
        h, c = cell(torch.zeros(1, 3), (h, c))
    (g,) = torch.autograd.grad(c.sum(), first)
    assert g[0, 0].item() == pytest.approx(theory.lstm_cell_ratio(1.0) ** 7, rel=1e-5)


def test_a_gru_leaks_at_its_ratio():
    cell = nn.GRUCell(3, 5)
    for parameter in cell.parameters():
        nn.init.zeros_(parameter)
    nn.init.constant_(cell.bias_ih[5:10].data, 1.0)
    first = torch.ones(1, 5, requires_grad=True)
    (g,) = torch.autograd.grad(cell(torch.zeros(1, 3), first).sum(), first)
    assert g[0, 0].item() == pytest.approx(theory.gru_ratio(1.0), rel=1e-5)


def test_horizons():
    assert theory.horizon(theory.recurrent_ratio(1.0, 0.25)) == pytest.approx(1 / math.log(2))
    assert theory.horizon(1.0) == math.inf


def test_the_largest_singular_value_of_a_gaussian_product(random):
    width = 500
    first, second = (normal(random, width, width, std=width**-0.5) for _ in range(2))
    measured = float(torch.linalg.svdvals(first @ second)[0]) ** 2
    assert theory.largest_singular_value_squared(1) == pytest.approx(4.0)
    assert theory.largest_singular_value_squared(2) == pytest.approx(27 / 4)
    assert measured == pytest.approx(27 / 4, rel=0.05)  # edge fluctuations of order n^(-2/3)


def test_the_spread_of_singular_values_of_a_relu_jacobian(random):
    width, depth = 400, 4
    jacobian = torch.eye(width)
    for _ in range(depth):
        mask = (torch.rand(width, 1, generator=random) > 0.5).float()
        jacobian = mask * (normal(random, width, width, std=(2 / width) ** 0.5) @ jacobian)
    gram = jacobian.T @ jacobian
    mean = float(gram.trace()) / width
    measured = square(gram) / width / mean**2 - 1
    # one draw at width 400: the sum of cubes wanders by some 5 %
    assert measured == pytest.approx(theory.singular_value_variance(depth, 0.5, 0.5), rel=0.15)


def test_orthogonal_linear_nets_are_isometric():
    assert theory.singular_value_variance(10, 1.0, 1.0, ensemble=0.0) == 0.0
    assert theory.singular_value_variance(10, 1.0, 1.0) == 10.0


def test_deep_norm_as_published():
    alone = theory.deep_norm(8)
    assert (alone.alpha, alone.beta) == (pytest.approx(2.0), pytest.approx(8**-0.5))
    encoder, decoder = theory.deep_norm_pair(16, 27)
    assert encoder.alpha * encoder.beta == pytest.approx(0.81 * 0.87)
    assert encoder.alpha == pytest.approx(0.81 * 2 * 27 ** (1 / 16))
    assert (decoder.alpha, decoder.beta) == (pytest.approx(3.0), pytest.approx(324**-0.25))


def test_fixup_scales():
    assert theory.fixup_scale(16, 2) == pytest.approx(0.25)
    assert theory.fixup_scale(16, 3) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="at least 2 layers, got 1"):
        theory.fixup_scale(16, 1)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(("of_limit", "stable"), [(0.99, True), (1.01, False)])
def test_sgd_diverges_just_above_the_limit(momentum, of_limit, stable):
    lr = of_limit * theory.largest_stable_lr(sharpness=4.0, momentum=momentum)
    x = torch.ones(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=lr, momentum=momentum)
    for _ in range(2000):
        x.grad = 4.0 * x.detach()
        optimizer.step()
    assert (abs(x.item()) < 1.0) == stable


def test_adam_settles_at_38_over_lr():
    assert theory.adam_stable_sharpness(1e-3) == pytest.approx(38_000)
