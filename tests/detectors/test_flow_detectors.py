"""Gradients and signals that explode, vanish, or collapse; and what is folded where."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from steadygrad.core.finding import Detector, Severity
from steadygrad.core.record import Record
from steadygrad.core.report import Report, diagnose
from steadygrad.detectors import DETECTORS
from steadygrad.detectors.flow import (
    collapsed_signal,
    exploding_gradient,
    exploding_signal,
    vanishing_gradient,
    vanishing_signal,
)

Network = Callable[..., Record]
FLOW: tuple[Detector, ...] = (
    exploding_gradient,
    vanishing_gradient,
    exploding_signal,
    vanishing_signal,
    collapsed_signal,
)
HE = math.log10(2) / 2


def codes(record: Record) -> list[str]:
    return [found.code for one in FLOW for found in one.run(record)]


def report_of(record: Record) -> Report:
    return diagnose(record, DETECTORS)


def roots(record: Record) -> list[str]:
    return [found.code for found in report_of(record).findings]


@pytest.mark.parametrize("depth", [1, 2, 3, 10, 100])
def test_a_level_gradient_is_healthy(network: Network, depth: int) -> None:
    assert codes(network([0.0] * depth)) == []
    assert roots(network([0.0] * depth)) == []


@pytest.mark.parametrize(("gain", "code"), [(0.2, "G101"), (-0.2, "G102")])
def test_a_trend_is_named_by_its_direction(network: Network, gain: float, code: str) -> None:
    assert codes(network([gain] * 30)) == [code]


@pytest.mark.parametrize(
    ("decades", "severity"), [(-2.1, Severity.note), (-3.5, Severity.risk), (-7.5, Severity.broken)]
)
def test_vanishing_grows_worse_with_decades(
    network: Network, decades: float, severity: Severity
) -> None:
    (found,) = vanishing_gradient.run(network([decades / 30] * 30))
    assert found.severity is severity


@pytest.mark.parametrize(
    ("decades", "severity"), [(1.4, Severity.note), (2.2, Severity.risk), (5.5, Severity.broken)]
)
def test_exploding_grows_worse_with_decades(
    network: Network, decades: float, severity: Severity
) -> None:
    (found,) = exploding_gradient.run(network([decades / 30] * 30))
    assert found.severity is severity


def test_adam_vanishes_later_than_plain_descent(network: Network) -> None:
    def severity(optimizer: str) -> Severity:
        (found,) = vanishing_gradient.run(network([-0.2] * 20, facts={"optimizer": optimizer}))
        return found.severity

    assert severity("SGD") is Severity.risk
    assert severity("Adam") is severity("RMSprop") is severity("Adafactor") is Severity.note


def test_norms_without_skips_are_an_exploding_gradient_of_their_own(network: Network) -> None:
    normed = {"gain_norm": 0.4, "gain_weight": -0.17, "gain_act": -0.15}
    record = network([0.083] * 60, scale=HE, units=dict.fromkeys(range(60), normed), nlc=5.6)
    (found,) = exploding_gradient.run(record)
    assert "norm layers without skip" in found.says
    assert found.evidence["kind"] == "chaotic"
    assert roots(record) == ["G101"]


def test_a_unit_that_stops_the_gradient_is_named(network: Network) -> None:
    record = network([0.0] * 5 + [-4.0] + [0.0] * 5, scale=HE)
    (found,) = vanishing_gradient.run(record)
    assert found.where == ("layers.5",)
    assert found.severity is Severity.risk


def test_a_unit_that_only_rescales_is_left_in_peace(network: Network) -> None:
    rescales = {"gain_norm": -4.0, "gain_weight": 0.15}
    assert codes(network([0.0] * 5 + [-4.0] + [0.0] * 5, scale=HE, units={5: rescales})) == []


def test_where_another_input_joins_the_gradient_divides(network: Network) -> None:
    assert codes(network([0.0] * 5 + [-4.0] + [0.0] * 5, scale=HE, units={5: {"joins": 1.0}})) == []


def test_the_first_layers_own_gain_depends_on_the_data_and_is_no_fault(network: Network) -> None:
    assert codes(network([-3.0] + [0.0] * 10, scale=HE)) == []


def test_pooling_is_left_out(network: Network) -> None:
    pools = {"gain_pool": -2.0}
    record = network([-2.0, 0.0, 0.0] * 4, scale=HE, units=dict.fromkeys(range(0, 12, 3), pools))
    assert codes(record) == []


def test_an_output_ten_thousand_times_too_large_is_an_exploding_signal(network: Network) -> None:
    grows = {place: {"log_rms": 0.4 * place} for place in range(11)}
    found = exploding_signal.run(network([0.0] * 11, units=grows, out_log_rms=4.0))
    assert [one.severity for one in found] == [Severity.risk]
    assert found[0].where == ("layers.6",)


def test_a_large_input_that_stays_large_did_not_explode(network: Network) -> None:
    large = {place: {"log_rms": 4.0} for place in range(11)}
    assert exploding_signal.run(network([0.0] * 11, units=large, out_log_rms=4.0)) == []


@pytest.mark.parametrize(
    ("size", "severity"), [(-6.5, Severity.risk), (-math.inf, Severity.broken)]
)
def test_an_output_of_rounding_or_zeros_is_a_vanishing_signal(
    network: Network, size: float, severity: Severity
) -> None:
    (found,) = vanishing_signal.run(network([0.0] * 4, out_log_rms=size))
    assert found.severity is severity


def test_a_loss_may_be_as_small_or_as_large_as_it_likes(network: Network) -> None:
    assert vanishing_signal.run(network([0.0] * 4, out_log_rms=-9.0, of_loss=True)) == []
    assert exploding_signal.run(network([0.0] * 4, out_log_rms=5.0, of_loss=True)) == []


def test_where_no_weight_is_trained_no_depth_is_judged(network: Network) -> None:
    assert codes(network([-0.4] * 30, out_log_rms=-9.0)) == ["G102", "G104"]
    flow = network([-0.4] * 30, out_log_rms=-9.0).facts["flow"]
    untrained = network([-0.4] * 30, facts={"flow": {**flow, "weights": 0}})
    assert codes(untrained) == []


@pytest.mark.parametrize(
    ("spread", "severity"), [(3e-3, Severity.note), (1e-4, Severity.risk), (1e-7, Severity.broken)]
)
def test_samples_that_look_alike_are_a_collapsed_signal(
    network: Network, spread: float, severity: Severity
) -> None:
    shrinking = {place: {"spread": spread ** (place / 9)} for place in range(10)}
    (found,) = collapsed_signal.run(network([0.0] * 10, units=shrinking, spread_out=spread))
    assert found.severity is severity
    assert found.evidence["collapse_decades"] == pytest.approx(math.log10(spread))


def test_samples_that_are_alike_at_the_input_did_not_collapse(network: Network) -> None:
    assert codes(network([0.0] * 4, spread_in=1e-4, spread_out=1e-8)) == []


def test_an_unread_spread_is_no_collapse(network: Network) -> None:
    assert codes(network([0.0] * 4, spread_in=math.nan, spread_out=math.nan)) == []


def test_the_gradient_and_the_signal_that_vanish_stand_under_weak_weights(network: Network) -> None:
    record = network([math.log10(0.408)] * 30, out_log_rms=-7.0, spread_out=1e-9)
    report = report_of(record)
    assert [found.code for found in report.findings] == ["G201"]
    assert set(report.findings[0].symptoms) == {"G102", "G104", "G105"}
    assert {one.because for one in report.folded} == {("G201",)}


def test_what_explodes_stands_under_strong_weights(network: Network) -> None:
    grows = {place: {"log_rms": 0.5 * place} for place in range(30)}
    record = network([0.5] * 30, units=grows, out_log_rms=15.0)
    assert roots(record) == ["G202"]
    assert set(report_of(record).findings[0].symptoms) == {"G101", "G103"}


@pytest.mark.parametrize("detector", FLOW, ids=lambda one: one.code)
def test_without_the_flow_a_detector_is_blind(network: Network, detector: Detector) -> None:
    reason = "the output is not finite"
    record = network([0.2] * 30, facts={"flow": None, "blind": {"flow": reason}})
    report = diagnose(record, [detector])
    assert report.verdict == "blind"
    assert report.blind[0].why == reason


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_reading_that_is_no_number_raises_nothing(network: Network, broken: float) -> None:
    record = network([0.0] * 3 + [broken] + [0.0] * 3, scale=HE, spread_out=broken)
    assert len(codes(record)) <= 2
