"""Weak and strong weights, over the depth and at one layer; what chance explains is no fault."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from steadygrad.core.finding import Detector, Finding, Severity
from steadygrad.core.record import Record
from steadygrad.core.theory import single_draw_band
from steadygrad.detectors.initialisation import growing_residual, strong_init, weak_init

Network = Callable[..., Record]

HE = math.log10(2) / 2  # log10 sqrt(Var(W) fan_in) that a ReLU needs (He 2015, equation 10)
DEFAULT = math.log10(0.408)  # kept by torch's default layer and a ReLU: sqrt(1/3 * 1/2)
BLOCK = math.log10(math.sqrt(2))  # x + F(x) with a branch of gain 1


def all_of(record: Record) -> list[Finding]:
    detectors: tuple[Detector, ...] = (weak_init, strong_init, growing_residual)
    return [found for one in detectors for found in one.run(record)]


def only(detector: Detector, record: Record) -> Finding:
    found = all_of(record)
    assert [one.code for one in found] == [detector.code]
    return found[0]


@pytest.mark.parametrize("depth", [1, 2, 3, 10, 100])
def test_a_level_gradient_is_healthy(network: Network, depth: int) -> None:
    assert all_of(network([0.0] * depth)) == []


def test_thirty_layers_that_keep_0_41_are_weak_init(network: Network) -> None:
    found = only(weak_init, network([DEFAULT] * 30))
    assert found.severity is Severity.broken
    assert found.where == tuple(f"layers.{i}" for i in range(30))
    assert found.evidence["factor_per_unit"] == pytest.approx(0.408, abs=1e-3)
    assert found.evidence["multiplier"] == pytest.approx(2.45, abs=0.01)
    assert found.evidence["weight_scale"] == pytest.approx(1 / 3, abs=1e-3)
    assert found.evidence["needed"] == pytest.approx(2.0)
    assert found.evidence["total_decades"] == pytest.approx(30 * DEFAULT, abs=1e-4)
    assert found.evidence["depth_scale"] == pytest.approx(1 / math.log(1 / 0.408), rel=1e-3)


def test_the_multiplier_stands_in_the_sentence_and_in_the_lines_to_paste(network: Network) -> None:
    found = only(weak_init, network([DEFAULT] * 30))
    assert "multiply the weights by 2.45" in found.says
    assert "mul_(2.45" in found.try_next[0].patch


def test_five_default_layers_are_no_alarm(network: Network) -> None:
    assert all(one.severity is Severity.note for one in all_of(network([DEFAULT] * 5)))


def test_thirty_layers_that_triple_the_gradient_are_strong_init(network: Network) -> None:
    found = only(strong_init, network([math.log10(3)] * 30))
    assert found.severity is Severity.broken
    assert found.evidence["multiplier"] == pytest.approx(1 / 3, abs=1e-3)


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_drift_within_the_band_of_a_single_draw_is_chance(network: Network, sign: int) -> None:
    band = single_draw_band([16] * 40)
    drift = 0.9 * sign * band.half_width
    assert abs(drift) > 1.3
    assert all_of(network([drift / 40] * 40, scale=HE, width=16)) == []


def test_a_drift_that_the_weights_scale_predicts_is_not_chance(network: Network) -> None:
    band = single_draw_band([16] * 40)
    drift = -(band.half_width + 3.4)
    found = only(weak_init, network([drift / 40] * 40, width=16))
    assert found.severity > Severity.note


def test_the_same_decades_count_less_under_an_optimizer_that_normalises(network: Network) -> None:
    gains = [-4.0 / 20] * 20
    plain = only(weak_init, network(gains, facts={"optimizer": "SGD"}))
    normalised = only(weak_init, network(gains, facts={"optimizer": "AdamW"}))
    assert (plain.severity, normalised.severity) == (Severity.risk, Severity.note)


def test_one_layer_a_thousandth_of_its_siblings_is_named(network: Network) -> None:
    record = network([0.0] * 6 + [-3.0] + [0.0] * 6)
    found = only(weak_init, record)
    assert found.where == ("layers.6",)
    assert found.severity is Severity.broken
    assert found.evidence["multiplier"] == pytest.approx(1000, rel=1e-3)


def test_one_layer_a_hundred_times_its_siblings_is_named(network: Network) -> None:
    found = only(strong_init, network([0.0] * 3 + [2.0] + [0.0] * 9))
    assert found.where == ("layers.3",)
    assert found.severity is Severity.risk


def test_of_two_odd_layers_the_worse_stands_first(network: Network) -> None:
    found = all_of(network([0.0] * 3 + [-2.0, 0.0, -3.0] + [0.0] * 9))
    assert [one.where[0] for one in found] == ["layers.5", "layers.3"]


def test_a_layer_within_the_usual_inits_of_its_siblings_is_not_odd(network: Network) -> None:
    assert all_of(network([0.0] * 6, weights={2: {"weight_gain": HE - 0.7}})) == []


def test_siblings_that_vary_as_much_excuse_a_layer(network: Network) -> None:
    scales = [0.0, 0.3, -0.3, 0.5, -0.5, 0.4, -0.4, 1.2]
    edits = {place: {"weight_gain": scale} for place, scale in enumerate(scales)}
    assert all_of(network([0.0] * 8, weights=edits)) == []


def test_two_layers_have_no_siblings_to_compare_with(network: Network) -> None:
    assert all_of(network([0.0, 0.0], weights={1: {"weight_gain": -3.0}})) == []


def test_an_odd_weight_before_a_norm_is_only_a_note(network: Network) -> None:
    odd = {4: {"weight_gain": -2.85, "normed": 1.0}}
    found = only(weak_init, network([0.0] * 9, weights=odd))
    assert found.severity is Severity.note
    assert found.confidence == "possible"
    assert "norm" in found.says


def test_an_odd_weight_before_a_norm_that_breaks_the_gradient_is_no_note(network: Network) -> None:
    odd = {4: {"weight_gain": -2.85, "normed": 1.0}}
    gains = [0.0] * 4 + [-3.0] + [0.0] * 4
    assert only(weak_init, network(gains, weights=odd)).severity is Severity.broken


def test_a_bias_that_drowns_the_signal_is_strong_init(network: Network) -> None:
    drowned = {"bias_ratio": 1.5, "bias_size": 1.5, "weight_spread": 0.05}
    found = only(strong_init, network([0.0] * 6, weights={2: drowned}))
    assert found.where == ("layers.2",)
    assert found.severity is Severity.risk
    assert "zeros_" in found.try_next[0].patch


@pytest.mark.parametrize(
    "excuse",
    [{"normed": 1.0}, {"head": 1.0}, {"weight_spread": 0.9}],
    ids=["a norm follows", "it is the head", "samples still differ"],
)
def test_a_large_bias_without_consequence_is_a_note(
    network: Network, excuse: dict[str, float]
) -> None:
    bias = {"bias_ratio": 1.5, "bias_size": 1.5, "weight_spread": 0.05}
    found = only(strong_init, network([0.0] * 6, weights={2: bias | excuse}))
    assert found.severity is Severity.note
    assert found.confidence == "possible"


def test_biases_that_are_all_large_are_the_models_way(network: Network) -> None:
    large = {"bias_ratio": 1.5, "bias_size": 1.5, "weight_spread": 0.05}
    assert all_of(network([0.0] * 6, weights=dict.fromkeys(range(6), large))) == []


@pytest.mark.parametrize(
    "follows", [{"feeds_zeros": 1.0}, {"feeds_dead": 0.95}, {"feeds_passes": -3.0}]
)
def test_a_bias_that_kills_an_activation_is_left_to_the_activation(
    network: Network, follows: dict[str, float]
) -> None:
    bias = {"bias_ratio": 2.0, "bias_size": 2.0, "weight_spread": 0.01}
    assert all_of(network([0.0] * 6, weights={2: bias | follows})) == []


def test_plain_residual_blocks_grow(network: Network) -> None:
    block = {"gain_block": BLOCK, "gain_weight": 0.0, "gain_act": 0.0}
    record = network([BLOCK] * 40, scale=HE, units=dict.fromkeys(range(40), block))
    found = [one for one in all_of(record) if one.severity > Severity.note]
    assert [one.code for one in found] == ["G205"]
    assert found[0].evidence["total_decades"] == pytest.approx(40 * BLOCK, abs=1e-4)


def test_scaled_residual_blocks_are_healthy(network: Network) -> None:
    scaled = 0.5 * math.log10(1 + 1 / 40)
    block = {"gain_block": scaled, "gain_weight": 0.0, "gain_act": 0.0}
    assert all_of(network([scaled] * 40, scale=HE, units=dict.fromkeys(range(40), block))) == []


@pytest.mark.parametrize("detector", [weak_init, strong_init, growing_residual])
def test_without_the_flow_a_detector_is_blind(network: Network, detector: Detector) -> None:
    record = network([DEFAULT] * 30, facts={"flow": None})
    assert "flow" in detector.missing(record)


def test_a_gradient_that_stops_dead_raises_nothing(network: Network) -> None:
    record = network([math.nan] * 3 + [-math.inf] + [0.0] * 4, scale=HE)
    assert all(one.code == "G201" for one in all_of(record))
