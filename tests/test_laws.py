"""Laws of every check: what changes nothing about a network's health moves no verdict.

Networks are drawn over depths, widths, activations and scales, sick and healthy ones; those that
stand at a threshold are let go, since rounding may decide there.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import steadygrad as sg
from steadygrad.core.report import Report

ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (nn.ReLU, nn.Tanh, nn.SiLU, nn.Sigmoid)
LIMITS = (1.3, 2.0, 3.3, 5.0, 7.0)  # decades at which a trend's severity changes, see trend_of


@dataclass
class Drawn:
    """A network and a batch, as drawn."""

    model: nn.Sequential
    x: Tensor
    y: Tensor

    def loss(self, model: nn.Module) -> Tensor:
        return nn.functional.cross_entropy(model(self.x), self.y)

    def check(self, *, factor: float = 1.0) -> Report:
        return sg.check(self.model, loss=lambda m: factor * self.loss(m), probes=False)


@st.composite
def networks(draw: st.DrawFn, *, norms: bool = True) -> Drawn:
    """Draw a plain network: its depth, width, activation, norm, and the scale of its weights."""
    depth, width = draw(st.integers(2, 16)), draw(st.sampled_from([16, 32]))
    act = draw(st.sampled_from(ACTIVATIONS))
    norm = nn.LayerNorm if norms and draw(st.booleans()) else None
    scale = draw(st.sampled_from([0.1, 0.5, 1.0, 1.5, 4.0]))
    torch.manual_seed(draw(st.integers(0, 1000)))
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), *([norm(width)] if norm else []), act()]
    model = nn.Sequential(*layers, nn.Linear(width, 4))
    with torch.no_grad():
        for layer in model[: 3 * depth]:
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(scale * 3**0.5)
    return Drawn(model, torch.randn(24, width), torch.arange(24) % 4)


def verdict(report: Report) -> list[tuple[str, int, tuple[str, ...]]]:
    return [(one.code, one.severity, one.symptoms) for one in report.findings]


def total(report: Report) -> float:
    return float(report.record.facts["flow"]["total_decades"])


def clear_of_limits(report: Report, room: float = 0.1) -> bool:
    flow = report.record.facts["flow"]
    seen = (total(report), flow["out_log_rms"])
    return all(abs(abs(value) - limit) > room for value in seen for limit in LIMITS)


@settings(max_examples=15)
@given(networks(), st.sampled_from([1e-6, 1e-3, 1e3, 1e6]))
def test_multiplying_the_loss_moves_no_verdict(drawn: Drawn, factor: float) -> None:
    assert verdict(drawn.check(factor=factor)) == verdict(drawn.check())


@settings(max_examples=15)
@given(networks(), st.integers(0, 1000))
def test_permuting_hidden_units_moves_no_verdict_and_no_total(drawn: Drawn, seed: int) -> None:
    plain = drawn.check()
    assume(clear_of_limits(plain))
    permute(drawn.model, torch.Generator().manual_seed(seed))
    permuted = drawn.check()
    assert verdict(permuted) == verdict(plain)
    # the random cotangent meets the same outputs, so that only the order of sums differs
    assert total(permuted) == pytest.approx(total(plain), abs=1e-3)


def permute(model: nn.Sequential, generator: torch.Generator) -> None:
    """Reorder the units between the first layer and the second, and everything that knows them."""
    order = torch.randperm(model[0].out_features, generator=generator)  # type: ignore[arg-type] # an int
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Linear) and layer is not model[0]:
                layer.weight.copy_(layer.weight[:, order])
                return
            for parameter in layer.parameters():
                parameter.copy_(parameter[order])


@settings(max_examples=15)
@given(networks(), st.integers(2, 3))
def test_duplicating_the_batch_moves_no_verdict(drawn: Drawn, times: int) -> None:
    plain = drawn.check()
    assume(clear_of_limits(plain, room=0.3))  # another cotangent is drawn for the new samples
    more = Drawn(drawn.model, drawn.x.repeat(times, 1), drawn.y.repeat(times))
    assert verdict(more.check()) == verdict(plain)


@settings(max_examples=15)
@given(networks())
def test_single_and_double_precision_agree(drawn: Drawn) -> None:
    plain = drawn.check()
    assume(clear_of_limits(plain))
    double = Drawn(copy.deepcopy(drawn.model).double(), drawn.x.double(), drawn.y)
    report = double.check()
    assert total(report) == pytest.approx(total(plain), abs=0.01)
    assert verdict(report) == verdict(plain)


@settings(max_examples=15)
@given(networks(norms=False), st.sampled_from([1e-3, 1e3]))
def test_a_units_scale_that_its_neighbours_undo_moves_no_total(drawn: Drawn, by: float) -> None:
    """ReLU is homogeneous: a layer times c and the next times 1 / c are the same function."""
    first, last = drawn.model[0], drawn.model[2]
    assume(isinstance(drawn.model[1], nn.ReLU))
    plain = total(drawn.check())
    with torch.no_grad():
        first.weight.mul_(by)  # type: ignore[operator,union-attr] # a linear layer
        first.bias.mul_(by)  # type: ignore[operator,union-attr] # a linear layer
        last.weight.div_(by)  # type: ignore[operator,union-attr] # a linear layer
    assert total(drawn.check()) == pytest.approx(plain, abs=1e-3)
