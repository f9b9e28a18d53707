"""Predict how signal and gradient travel through depth: closed forms, each with its paper.

Conventions. ``q`` is the second moment per element of a pre-activation, E[h^2], not its variance.
A *factor* is the ratio of two such squared quantities across one operation: q_out / q_in forward,
|g_in|^2 / |g_out|^2 (squared L2 norms of a random cotangent) backward. A *ratio* is the square
root of a factor. With L2 norms, the backward factor of a linear or convolution layer is
Var(W) * fan_in whatever its shape. All results are ratios without a unit unless one is named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Function = Callable[[Array], Array]

# --- The standard normal, as nodes ---------------------------------------------------------------


@lru_cache(maxsize=4)
def normal_grid(count: int = 20001) -> Array:
    """Return the stratified quantile grid z_i = Phi^-1((i + 1/2) / count), float64 [count].

    A plain mean over the grid is an expectation under N(0, 1). Every node has the same weight, so
    kinks and jumps cost O(1/count), where Gauss-Hermite with 256 nodes errs by 2e-2. The default
    keeps every gain of a function that grows no faster than linearly within 1e-4; the tails cost
    more as f grows (squared ReLU: 9e-4). The array is cached and therefore read-only.
    """
    quantile = NormalDist().inv_cdf
    half = np.array([quantile((i + 0.5) / count) for i in range((count + 1) // 2)])
    grid = np.concatenate([half, -half[: count // 2][::-1]])
    grid.flags.writeable = False
    return grid


@lru_cache(maxsize=4)
def _midpoints(count: int = 8000, reach: float = 10.0) -> tuple[Array, Array]:
    """Return nodes and weights [count] of the midpoint rule for N(0, 1) on [-reach, reach].

    The maps below are solved to 1e-7, which the quantile grid cannot give. On a density that
    vanishes with all its derivatives at the ends, the midpoint rule is spectrally accurate for
    smooth f (limited by the missing tail, 1e-23), O(h^2) at a kink, O(h) at a jump, and exact at a
    jump at 0, which lies between two nodes. Here h = 2 * reach / count = 0.0025.
    """
    nodes: Array = (np.arange(count, dtype=np.float64) + 0.5) * (2 * reach / count) - reach
    weights: Array = np.exp(-0.5 * nodes**2)
    return nodes, weights / weights.sum()


def _expect(f: Function, q: float) -> float:
    """Return E f(sqrt(q) z)."""
    nodes, weights = _midpoints()
    with np.errstate(over="ignore"):  # exp in a far tail saturates to inf and f to its limit
        return float(weights @ f(math.sqrt(q) * nodes))


def _square(f: Function) -> Function:
    return lambda x: f(x) ** 2


def _bisect(f: Callable[[float], float], low: float, high: float) -> float:
    """Return the root between low and high, where f changes sign, to the last bit or nearly."""
    rising = f(high) > 0
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if (f(middle) > 0) == rising else (middle, high)
    return 0.5 * (low + high)


def _log_root(f: Callable[[float], float], low: float, high: float) -> float:
    """Return the root of f between two positive numbers, found on a logarithmic scale."""
    return math.exp(_bisect(lambda x: f(math.exp(x)), math.log(low), math.log(high)))


def _crossings(trial: list[float], values: list[float], noise: float) -> list[tuple[float, float]]:
    """Return the pairs of trial points between which the values, beyond noise, change sign."""
    clear = [(x, y) for x, y in zip(trial, values, strict=True) if abs(y) > noise]
    return [(x1, x2) for (x1, y1), (x2, y2) in pairwise(clear) if y1 * y2 < 0]


# --- Gains of an activation ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Gain:
    """Hold what an elementwise activation f does to a pre-activation x ~ N(0, q).

    mean            E f.
    second_moment   E f^2.
    variance        Var f.
    slope           E f'^2: backward factor (He 2015, sec. 2.2, equation 14; chi_1 at sigma_w = 1).
    forward         g_fwd = sqrt(q / E f^2): weights of std g_fwd / sqrt(fan_in) keep q.
    backward        g_bwd = 1 / sqrt(E f'^2): weights of that std keep the gradient's L2 norm.
    standardising   g_std = sqrt(q / Var f): keeps the variance; the gamma of scaled weight
                    standardization (Brock 2021, "Characterizing signal propagation"),
                    exact where the published constants are Monte Carlo (up to 9e-4 off).
    chi             g_fwd^2 * E f'^2: backward factor per layer at the forward gain.
    eta             d ln E f(sqrt(q) z)^2 / d ln q. Above 1 the forward gain's fixed point is
                    unstable (GELU, SiLU, Mish, Hardswish): use a critical pair instead.
    nlc             sqrt(q E f'^2 / Var f), not squared: Philipp's nonlinearity coefficient
                    (Philipp & Carbonell 2018, "The nonlinearity coefficient"); the
                    gradient's ratio per layer in a batch-normalized net is also this number.

    All are ratios; a gain whose denominator is 0 is inf.
    """

    mean: float
    second_moment: float
    variance: float
    slope: float
    forward: float
    backward: float
    standardising: float
    chi: float
    eta: float
    nlc: float


def gain_of(values: Array, slopes: Array, z: Array, q: float = 1.0) -> Gain:
    """Return the gains of f from f(sqrt(q) z) and f'(sqrt(q) z), all three arrays [count].

    Plain means over z are taken, so z is `normal_grid()` or a sample of N(0, 1). eta needs no
    second evaluation: d/dq E f(sqrt(q) z)^2 = E[f f' z] / sqrt(q). That, and the meaning of slope,
    suppose f continuous: at a jump (hardshrink) the derivative misses what the jump adds.
    """
    mean, second = float(np.mean(values)), float(np.mean(values**2))
    variance = float(np.var(values))
    slope = float(np.mean(slopes**2))
    return Gain(
        mean=mean,
        second_moment=second,
        variance=variance,
        slope=slope,
        forward=math.sqrt(_over(q, second)),
        backward=math.sqrt(_over(1.0, slope)),
        standardising=math.sqrt(_over(q, variance)),
        chi=_over(q * slope, second),
        eta=_over(math.sqrt(q) * float(np.mean(values * slopes * z)), second),
        nlc=math.sqrt(_over(q * slope, variance)),
    )


def _over(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.inf


def predicted_ratio(weight_variance: float, fan_in: float, slope: float) -> float:
    """Return the factor by which one layer multiplies the gradient's L2 norm, going back.

    sqrt(Var(W) * fan_in * E f'^2) (He 2015, sec. 2.2). fan_in is C_in / groups * kernel size for a
    convolution, divided by stride^2 for a transposed one. Zero padding, which loses up to 4 % of
    the factor of a 3x3 kernel on 32x32, is not counted. Wrong when weights are not independent.
    """
    return math.sqrt(weight_variance * fan_in * slope)


# --- Mean-field maps over depth ------------------------------------------------------------------


def length_map(f: Function, q: float, sigma_w2: float, sigma_b2: float) -> float:
    """Return the next layer's q: sigma_w2 * E f(sqrt(q) z)^2 + sigma_b2.

    Poole 2016, sec. 2. sigma_w2 is Var(W) * fan_in, sigma_b2 is Var(b).
    """
    return sigma_w2 * _expect(_square(f), q) + sigma_b2


def fixed_point(f: Function, sigma_w2: float, sigma_b2: float, start: float = 1.0) -> float:
    """Return the q* at which the length map ends when begun at `start`.

    Solved by bisection between `start` and the first q, a power of 2 away, where the map moves the
    other way; iteration would take 1/|1 - slope| layers. 0.0 says the signal dies (q* below
    1e-12), inf that it grows without end (above 1e12). A start that moves by less than 1e-9 per
    layer, as every q does for ReLU at sigma_w2 = 2, is its own fixed point. Fixed points less than
    an octave apart may be stepped over.
    """

    def drift(q: float) -> float:
        return length_map(f, q, sigma_w2, sigma_b2) / q - 1.0

    first = drift(start)
    if abs(first) < 1e-9:
        return start
    low = high = start
    while drift(high) * first > 0:
        low, high = high, high * (2.0 if first > 0 else 0.5)
        if not 1e-12 < high < 1e12:
            return math.inf if first > 0 else 0.0
    return _log_root(drift, low, high)


def chi1(df: Function, q: float, sigma_w2: float) -> float:
    """Return chi_1 = sigma_w2 * E f'(sqrt(q) z)^2: the squared gradient norm's factor per layer.

    Poole 2016, sec. 2; Schoenholz 2017. Below 1 the gradient vanishes and
    inputs become alike (ordered), above 1 it explodes and they drift apart (chaotic).
    """
    return sigma_w2 * _expect(_square(df), q)


def depth_scale(chi: float) -> float:
    """Return 1 / |ln chi|: the number of layers over which a squared gradient changes e-fold.

    Schoenholz 2017 (their xi_grad). inf at chi = 1, 0 at chi = 0. That paper's figure 5
    finds nets trainable up to about 6 correlation scales.
    """
    if chi == 0.0:
        return 0.0
    return math.inf if chi == 1.0 else 1.0 / abs(math.log(chi))


def correlation_map(
    f: Function, correlation: float, q: float, sigma_w2: float, sigma_b2: float
) -> float:
    """Return the next layer's correlation between two inputs, both at the fixed point q.

    (sigma_w2 * E f(u1) f(u2) + sigma_b2) / q, where u1, u2 are N(0, q) with that correlation
    (Poole 2016, sec. 2).
    """
    return (sigma_w2 * _expect_pair(f, correlation, q) + sigma_b2) / q


def correlation_scale(
    f: Function, df: Function, q: float, sigma_w2: float, sigma_b2: float
) -> float:
    """Return xi_c = 1 / |ln(sigma_w2 * E f'(u1) f'(u2))|, the layers inputs stay told apart.

    The correlation of two inputs nears its fixed point e-fold in xi_c layers (Schoenholz 2017).
    Taken at the map's stable correlation: 1 while chi_1 <= 1 (then xi_c = xi_grad), else the root
    in [0, 1). Negative correlations are not searched.
    """
    chi = chi1(df, q, sigma_w2)
    if chi <= 1.0:
        return depth_scale(chi)
    stable = _bisect(lambda c: correlation_map(f, c, q, sigma_w2, sigma_b2) - c, 0.0, 1 - 1e-9)
    return depth_scale(sigma_w2 * _expect_pair(df, stable, q))


def _expect_pair(f: Function, correlation: float, q: float) -> float:
    """Return E f(u1) f(u2) by the midpoint rule in both normals (400 x 400 nodes on [-8, 8])."""
    nodes, weights = _midpoints(400, 8.0)
    rest = math.sqrt(max(0.0, 1.0 - correlation**2))
    second = math.sqrt(q) * (correlation * nodes[:, None] + rest * nodes[None, :])
    with np.errstate(over="ignore"):
        return float((weights * f(math.sqrt(q) * nodes)) @ (f(second) @ weights))


# --- Critical initialization ---------------------------------------------------------------------


def critical_weight_variance(f: Function, df: Function, sigma_b2: float) -> float:
    """Return the sigma_w2 at which chi_1 = 1 at its own fixed point (tanh, .05: 1.76095).

    The critical line (Schoenholz 2017; Xiao 2018 for sigma_b2 = 2.01e-5). With
    sigma_w2 = 1 / E f'^2 the condition is one equation in q: q = E f^2 / E f'^2 + sigma_b2. The
    smallest root in [1e-9, 1e4] is taken, eight trial points a decade; a residual below 1e-9 of q
    counts as a root, which is how tanh (1 at sigma_b2 = 0) and ReLU (2) end. Raise ValueError when
    no q satisfies it (ReLU with a bias).
    """

    def residual(q: float) -> float:
        return 1.0 - (_expect(_square(f), q) / _expect(_square(df), q) + sigma_b2) / q

    trial = _sloped(df, np.logspace(-9, 4, 105))
    values = [residual(q) for q in trial]
    if abs(values[0]) < 1e-9:
        return 1.0 / _expect(_square(df), trial[0])
    between = _crossings(trial, values, 1e-9)
    if not between:
        raise ValueError(
            f"no weight variance is critical at sigma_b2 = {sigma_b2:g}: for no q in [1e-9, 1e4] "
            "is chi_1 = 1 at a fixed point; try a smaller sigma_b2 or the activation's own gain"
        )
    return 1.0 / _expect(_square(df), _log_root(residual, *between[0]))


_NOISE = 5e-3
"""|chi_par / chi_perp - 1| below which its sign says nothing: chosen by us, between what a jump in
f' costs the midpoint rule (softshrink, where it is exactly 0: 3.4e-3) and the least excursion of a
true pair (SiLU beyond K*: 1.4e-2)."""


@dataclass(frozen=True, slots=True)
class CriticalPair:
    """Hold a half-stable critical initialization: Var(b) = bias, Var(W) * fan_in = weight.

    second_moment is K*, the second moment of every pre-activation. The first layer must bring the
    input there, Var(W_1) = (K* - bias) / (fan_in * E x^2), and the head undoes it, 1 / (fan_in K*).
    """

    bias: float
    weight: float
    second_moment: float


def critical_pair(f: Function, df: Function) -> CriticalPair:
    """Return the pair (C_b, C_W) and K* at which chi_parallel = chi_perpendicular = 1.

    Roberts, Yaida & Hanin 2022, "The Principles of Deep Learning Theory", sec. 5.3
    (half-stable class): with chi_perp = C_W E f'^2 and chi_par = C_W dE f^2/dK
    = C_W E[f f' z] / sqrt(K), both are 1 where the two expectations agree; then C_W = 1 / E f'^2
    and C_b = K - C_W E f^2. The smallest K in [1e-3, 1e3] with C_b >= 0 is taken. Raise
    ValueError, with the reason, when there is none.
    """
    trial = _sloped(df, np.logspace(-3, 3, 97))
    values = [_stretch(f, df, k) for k in trial]
    _refuse_degenerate(f, df, values)
    between = _crossings(trial, values, _NOISE)
    roots = [_log_root(lambda k: _stretch(f, df, k), *at) for at in between]
    for pair in (_pair_at(f, df, k) for k in roots):
        if pair.bias >= 0:
            return pair
    raise ValueError(_no_pair(values, roots))


def _stretch(f: Function, df: Function, k: float) -> float:
    """Return chi_parallel / chi_perpendicular - 1 at K = k."""
    parallel = _expect(lambda x: f(x) * df(x) * x, k) / k
    return parallel / _expect(_square(df), k) - 1.0


def _pair_at(f: Function, df: Function, k: float) -> CriticalPair:
    weight = 1.0 / _expect(_square(df), k)
    return CriticalPair(k - weight * _expect(_square(f), k), weight, k)


def _sloped(df: Function, trial: Array) -> list[float]:
    """Return the trial points at which E f'^2 is above 1e-3 of its value at q = 1.

    A shrinking activation is flat near 0: below that its slope sits in the far tail, where the
    midpoint rule is coarse and no sane weight variance makes up for it (1e-3 chosen by us).
    """
    least = 1e-3 * _expect(_square(df), 1.0)
    sloped = [q for q in trial.tolist() if _expect(_square(df), q) > least]
    if not sloped:
        raise ValueError("nothing is critical for an activation whose slope is 0 everywhere")
    return sloped


def _refuse_degenerate(f: Function, df: Function, values: list[float]) -> None:
    """Raise when chi_par = chi_perp at every K: straight pieces meeting at f = 0 (E f f'' = 0)."""
    if max(map(abs, values)) < _NOISE:
        pair = _pair_at(f, df, 1.0)
        raise ValueError(
            "a critical pair needs one K* and for this activation, as for ReLU, every K is "
            f"critical: at K = 1 use Var(b) = {round(pair.bias, 9) + 0.0:.6g} and "
            f"Var(W) * fan_in = {pair.weight:.6g}"
        )


def _no_pair(values: list[float], roots: list[float]) -> str:
    if roots:
        return (
            "this activation has no critical pair: chi_par = chi_perp only where the bias variance "
            "would be negative; use another activation, or a normalization and skip connections"
        )
    side = "below" if values[len(values) // 2] < 0 else "above"
    return (
        f"this activation has no critical pair: chi_par stays {side} chi_perp for every K in "
        "[1e-3, 1e3]; use critical_weight_variance, or the activation's own gain"
    )


# --- Norm layers ---------------------------------------------------------------------------------
# A norm's Jacobian is weight / s * P, where P projects out the mean and the normalized vector
# (rank n - 2; n - 1 when no mean is removed), so its factor is weight^2 rank(P) / (n s^2).
# For normal inputs n s^2 / variance is chi-squared with n - 1 (n) degrees of freedom k, and
# E[1 / chi^2_k] = 1 / (k - 2). Forward, every norm's factor is weight^2 / variance.


def layer_norm_factor(variance: float, width: int, weight: float = 1.0) -> float:
    """Return LayerNorm's backward factor: weight^2 / variance * (width - 2) / (width - 3).

    Derived above for i.i.d. normal inputs; width > 3 is the number of elements normalized.
    """
    return _centered_norm_factor(variance, width, weight)


def group_norm_factor(variance: float, size: int, weight: float = 1.0) -> float:
    """Return GroupNorm's backward factor; size = channels / groups * positions, above 3."""
    return _centered_norm_factor(variance, size, weight)


def batch_norm_factor(variance: float, count: int, weight: float = 1.0) -> float:
    """Return BatchNorm's backward factor in training; count = samples * positions, above 3.

    Yang 2019, "A mean field theory of batch normalization", for the identity net: (B - 2)/(B - 3).
    """
    return _centered_norm_factor(variance, count, weight)


def rms_norm_factor(second_moment: float, width: int, weight: float = 1.0) -> float:
    """Return RMSNorm's backward factor: weight^2 / q * (width - 1) / (width - 2), width > 2."""
    if width <= 2:
        raise ValueError(f"RMSNorm's factor is finite from 3 elements on, got {width}")
    return weight**2 / second_moment * (width - 1) / (width - 2)


def _centered_norm_factor(variance: float, count: int, weight: float) -> float:
    if count <= 3:
        raise ValueError(f"a centering norm's factor is finite from 4 elements on, got {count}")
    return weight**2 / variance * (count - 2) / (count - 3)


def batch_norm_net_factor(slope: float, variance: float) -> float:
    """Return E f'^2 / Var f: the backward factor of [linear, BatchNorm, f] in a deep net.

    Yang 2019, for a large batch: ReLU gives pi / (pi - 1) = 1.4669, and no weight scale
    cures it. Too low for GELU and SiLU (SiLU: 1.343 measured, 1.212 here), whose batches lose their
    symmetry: one sample comes to dominate.
    """
    return slope / variance


# --- Residuals, pooling, dropout, attention, gates -----------------------------------------------

MAX_POOL_2X2_FORWARD = 1.0 + math.sqrt(3.0) / math.pi
"""q's factor through a 2x2 max-pool of i.i.d. N(0, 1): the second moment of the largest of four."""

MAX_POOL_BACKWARD = 1.0
"""The gradient's factor through a max-pool without overlap: it only moves entries."""


def residual_factor(branch: float, scale: float = 1.0) -> float:
    """Return 1 + scale^2 * branch: the factor of x + scale * F(x), forward or backward.

    branch is F's own factor. Exact when F's weights are independent of x and have zero mean.
    """
    return 1.0 + scale**2 * branch


def plain_residual_factor(depth: int) -> float:
    """Return 2^depth: the factor of `depth` blocks x + F(x) whose branch keeps the scale (He)."""
    return 2.0**depth


def normalized_residual_factor(depth: int) -> float:
    """Return depth + 1: the factor of `depth` blocks x + F(norm(x)); each adds one (De 2020)."""
    return depth + 1.0


def dropout_factor(p: float) -> float:
    """Return 1 / (1 - p): dropout's factor in training, forward and backward."""
    return 1.0 / (1.0 - p)


def average_pool_forward(count: int, correlation: float = 0.0) -> float:
    """Return q's factor when `count` elements of that correlation are averaged: 1/count to 1."""
    return (1.0 + (count - 1) * correlation) / count


def average_pool_backward(count: int) -> float:
    """Return 1 / count: the gradient's factor when `count` elements are averaged."""
    return 1.0 / count


def attention_value_factor(logit_std: float, tokens: int) -> float:
    """Return S = E sum_t a_t^2 ~ e^(s^2) / T: the gradient's factor from attention output to V.

    a is a softmax over T tokens with i.i.d. N(0, s^2) logits; leading order in 1/T, so 10 % high
    at s = 1, T = 64, and cut at 1, where all weight is on one token.
    """
    return min(1.0, math.exp(logit_std**2) / tokens)


def attention_forward(logit_std: float, tokens: int, correlation: float = 0.0) -> float:
    """Return rho + (1 - rho) S: q's factor through attention when tokens have correlation rho."""
    spread = attention_value_factor(logit_std, tokens)
    return correlation + (1.0 - correlation) * spread


def gated_forward(gate: Gain, value_q: float = 1.0) -> float:
    """Return q of u * f(b), value u of second moment value_q: value_q * E f^2 (GLU and kin).

    0.2934 for GLU (sigmoid), 0.4252 for GEGLU, 0.3558 for SwiGLU at q = 1 (Shazeer 2020).
    """
    return value_q * gate.second_moment


def gated_backward(gate: Gain, value_q: float = 1.0) -> float:
    """Return |g_u|^2 + |g_b|^2 over |g_out|^2 of u * f(b): E f^2 + value_q * E f'^2."""
    return gate.second_moment + value_q * gate.slope


# --- Finite width --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Band:
    """Hold where a single draw's gradient norm falls: shift +- half_width, in decades."""

    shift: float
    half_width: float


def single_draw_band(widths: Iterable[int]) -> Band:
    """Return the band of log10 |J u| about the infinite-width value, for one draw of the weights.

    ln |J u|^2 ~ N(-b/2, b) with b = sum 5 / n over the hidden widths (Hanin & Nica 2018, "Products
    of many large random matrices"; ReLU at He's variance). Halved for the norm and
    divided by ln 10 for decades; half_width is 3 standard deviations (chosen by us: 1 healthy draw
    in 370 falls outside). For smooth activations b is smaller, so the band is then generous.
    """
    b = sum(5.0 / width for width in widths)
    return Band(shift=-b / 4 / math.log(10), half_width=3 * math.sqrt(b) / 2 / math.log(10))


# --- Through time --------------------------------------------------------------------------------


def lstm_cell_ratio(forget_bias: float = 0.0) -> float:
    """Return sigmoid(b_f): the cell gradient's ratio per time step when gates see zero inputs.

    dc_T / dc_0 is exactly the product of forget gates (Gers 2000; Jozefowicz 2015 for b_f = 1).
    forget_bias is the sum of both biases of torch's LSTM.
    """
    return 1.0 / (1.0 + math.exp(-forget_bias))


def gru_ratio(update_bias: float = 0.0) -> float:
    """Return E z ~ sigmoid(b_z): the GRU state gradient's ratio per time step along its leak.

    torch keeps h with z, h' = (1 - z) n + z h. Low by what flows through n (0.65 measured at the
    default initialization against 0.5).
    """
    return lstm_cell_ratio(update_bias)


def recurrent_ratio(sigma_w2: float, slope: float) -> float:
    """Return sqrt(sigma_w2 * E f'^2): a plain RNN's gradient ratio per time step (sqrt of chi_1).

    sigma_w2 = Var(W_hh) * hidden size. The same weights at each step make it hold on average only.
    """
    return math.sqrt(sigma_w2 * slope)


def horizon(ratio: float) -> float:
    """Return 1 / |ln ratio|: the time steps over which the gradient norm changes e-fold."""
    return depth_scale(ratio)


# --- Spectra, depth scalings, stability ----------------------------------------------------------


def largest_singular_value_squared(depth: int) -> float:
    """Return (L + 1)^(L + 1) / L^L: the largest s^2 of a product of L Gaussian matrices, mean 1.

    Infinite width (Pennington 2017, "Resurrecting the sigmoid"): about e * L.
    """
    return (depth + 1) * (1.0 + 1.0 / depth) ** depth


def singular_value_variance(
    depth: int, slope: float, slope_fourth: float, ensemble: float = -1.0
) -> float:
    """Return L (mu2 / mu1^2 - 1 - s1): the variance of the Jacobian's squared singular values.

    mu1 = E f'^2 and mu2 = E f'^4, mean normalized to 1 (Pennington 2018, "The emergence of
    spectral universality"). s1 = -1 for Gaussian, 0 for orthogonal weights.
    """
    return depth * (slope_fourth / slope**2 - 1.0 - ensemble)


@dataclass(frozen=True, slots=True)
class DeepNorm:
    """Hold alpha, which multiplies the skip path, and beta, which multiplies initial weights."""

    alpha: float
    beta: float


def deep_norm(layers: int) -> DeepNorm:
    """Return DeepNorm's scales for an encoder-only or decoder-only net of `layers` layers.

    alpha = (2N)^(1/4), beta = (8N)^(-1/4) (Wang 2022, "DeepNet", figure 2).
    """
    return DeepNorm((2 * layers) ** 0.25, (8 * layers) ** -0.25)


def deep_norm_pair(encoder: int, decoder: int) -> tuple[DeepNorm, DeepNorm]:
    """Return DeepNorm's scales (encoder's, decoder's) for an encoder-decoder net.

    Encoder .81 (N^4 M)^(1/16), .87 (N^4 M)^(-1/16); decoder (3M)^(1/4), (12M)^(-1/4)
    (Wang 2022, figure 2).
    """
    mixed = (encoder**4 * decoder) ** (1 / 16)
    return (
        DeepNorm(0.81 * mixed, 0.87 / mixed),
        DeepNorm((3 * decoder) ** 0.25, (12 * decoder) ** -0.25),
    )


def fixup_scale(branches: int, layers: int) -> float:
    """Return L^(-1 / (2m - 2)): Fixup's factor on all but the last weight of a residual branch.

    L branches of m layers each (Zhang 2019, "Fixup initialization", sec. 3). m is at least 2: the
    only layer of a branch is its last and starts at zero.
    """
    if layers < 2:
        raise ValueError(f"Fixup scales branches of at least 2 layers, got {layers}")
    return float(branches ** (-1.0 / (2 * layers - 2)))


def largest_stable_lr(sharpness: float, momentum: float = 0.0) -> float:
    """Return (2 + 2 beta) / lambda_max: the learning rate above which (heavy-ball) SGD diverges.

    sharpness is the Hessian's largest eigenvalue. Exact on a quadratic (Polyak 1964; Cohen 2021,
    "Edge of stability"); real nets hover at the limit without diverging.
    """
    return (2.0 + 2.0 * momentum) / sharpness


def adam_stable_sharpness(lr: float, beta1: float = 0.9) -> float:
    """Return (2 + 2 beta1) / ((1 - beta1) lr): the preconditioned sharpness Adam settles at.

    38 / lr at the default (Cohen 2022, "Adaptive gradient methods at the edge of stability");
    sharpness is that of the Hessian divided by Adam's denominator.
    """
    return (2.0 + 2.0 * beta1) / ((1.0 - beta1) * lr)
