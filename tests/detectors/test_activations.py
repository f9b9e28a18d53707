"""Dead and saturated activations are named where they begin, with the layer that feeds them."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from steadygrad.core.finding import Detector, Finding, Severity
from steadygrad.core.record import Record
from steadygrad.core.report import diagnose
from steadygrad.detectors import DETECTORS
from steadygrad.detectors.activations import (
    dead_relu,
    saturated_activation,
    unnormalised_depth,
)

Network = Callable[..., Record]
DEAD = {"op_zeros": 1.0, "op_dead": 1.0, "op_gain": -math.inf}
SIGMOID = 0.0447  # E f'^2 under N(0, 1)


def only(detector: Detector, record: Record) -> Finding:
    detectors: tuple[Detector, ...] = (dead_relu, saturated_activation, unnormalised_depth)
    found = [one for each in detectors for one in each.run(record)]
    assert [one.code for one in found] == [detector.code]
    return found[0]


def silent(record: Record) -> bool:
    detectors: tuple[Detector, ...] = (dead_relu, saturated_activation, unnormalised_depth)
    return not any(each.run(record) for each in detectors)


def test_half_of_a_relus_outputs_are_zero_by_nature(network: Network) -> None:
    assert silent(network([0.0] * 8))


def test_a_dead_relu_names_the_first_dead_layer_and_its_feeder(network: Network) -> None:
    behind = DEAD | {"op_zeros_before": 1.0}
    found = only(dead_relu, network([0.0] * 8, outputs={3: DEAD, 4: behind, 5: behind}))
    assert found.where == ("layers.3", "acts.3")
    assert found.severity is Severity.broken


def test_zeros_that_came_in_are_not_the_activations_doing(network: Network) -> None:
    assert silent(network([0.0] * 8, outputs={3: {"op_zeros": 1.0, "op_zeros_before": 1.0}}))


def test_a_sparse_layer_is_not_dead(network: Network) -> None:
    assert silent(network([0.0] * 8, outputs={3: {"op_zeros": 0.95, "op_dead": 0.6}}))


def test_a_layer_of_mostly_dead_units_beside_living_ones_is_a_risk(network: Network) -> None:
    found = only(dead_relu, network([0.0] * 8, outputs={3: {"op_zeros": 0.96, "op_dead": 0.95}}))
    assert found.severity is Severity.risk
    assert found.where[0] == "layers.3"


def test_a_network_that_is_sparse_throughout_is_designed_so(network: Network) -> None:
    sparse = {"op_zeros": 0.97, "op_dead": 0.92}
    assert silent(network([0.0] * 8, outputs=dict.fromkeys(range(8), sparse)))


def test_ten_sigmoid_layers_are_saturated_activations(network: Network) -> None:
    found = only(saturated_activation, network([-0.66] * 10, slope=SIGMOID))
    assert found.severity > Severity.note
    assert "no weights make up" in found.says


def test_tanh_used_at_its_flat_ends_is_saturated(network: Network) -> None:
    record = network(
        [-0.5] * 20, slope=0.46, act=0.02, units={place: {"pre_rms": 1.0} for place in range(20)}
    )
    found = only(saturated_activation, record)
    assert found.severity is Severity.broken
    assert found.evidence["slope"] == pytest.approx(0.02)
    assert found.evidence["slope_nominal"] == pytest.approx(0.46)


def test_one_saturated_activation_is_named_with_its_feeder(network: Network) -> None:
    found = only(saturated_activation, network([0.0] * 8, outputs={5: {"op_gain": -2.15}}))
    assert found.where == ("layers.5", "acts.5")
    assert found.severity is Severity.risk


def test_one_activation_that_passes_a_thousandth_is_broken(network: Network) -> None:
    found = only(saturated_activation, network([0.0] * 8, outputs={5: {"op_gain": -4.0}}))
    assert found.severity is Severity.broken


def test_activations_that_are_all_somewhat_flat_are_the_models_way(network: Network) -> None:
    flat = {place: {"op_gain": -1.4} for place in range(8)}
    assert silent(network([0.0] * 8, outputs=flat))


def test_gelu_with_its_exact_gain_is_unnormalised_depth(network: Network) -> None:
    drifts = {place: {"eta": 1.144, "ideal": 0.0} for place in range(30)}
    found = only(unnormalised_depth, network([-0.12] * 30, slope=0.45, units=drifts))
    assert found.evidence["eta"] == pytest.approx(1.144)


def test_gelu_with_weights_too_small_is_left_to_weak_init(network: Network) -> None:
    drifts = {place: {"eta": 1.144, "ideal": 0.186} for place in range(30)}
    assert silent(network([-0.5] * 30, slope=0.45, units=drifts))


def test_a_level_stack_of_gelu_is_healthy(network: Network) -> None:
    drifts = {place: {"eta": 1.144, "ideal": 0.186} for place in range(30)}
    assert silent(network([0.0] * 30, slope=0.45, units=drifts))


@pytest.mark.parametrize("detector", [saturated_activation, unnormalised_depth])
def test_without_the_flow_a_detector_is_blind(network: Network, detector: Detector) -> None:
    assert detector.missing(network([0.0] * 8, facts={"flow": None})) == ("flow",)


def test_a_dead_layer_explains_the_gradient_that_vanishes_there(network: Network) -> None:
    gains = [math.nan] * 3 + [-math.inf] + [0.0] * 4
    record = network(gains, outputs={3: DEAD}, scale=0.15, out_log_rms=-math.inf)
    report = diagnose(record, DETECTORS)
    assert [one.code for one in report.findings] == ["G301"]
    assert set(report.findings[0].symptoms) >= {"G102", "G104"}
