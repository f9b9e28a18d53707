"""Parameters that are zero by design are opened while the flow is read, and closed again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import steadygrad as sg
from steadygrad.probe.opened import opened, zero_by_design


class Holds(nn.Module):
    """A module with one parameter and a function of it and the input."""

    def __init__(self, shape: tuple[int, ...], run: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(shape))
        self.layer = nn.Linear(4, 4)
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.layer(x), self.value)


HIDES: dict[str, Holds] = {
    "a scale of a branch": Holds((), lambda x, v: x + v * x.relu()),
    "a layer scale": Holds((4,), lambda x, v: x + v * x.relu()),
    "a head": Holds((3, 4), functional.linear),
    "a product": Holds((4, 3), lambda x, v: x @ v),
    "a transposed product": Holds((3, 4), lambda x, v: x @ v.T),
    "a gamma": Holds((4,), lambda x, v: functional.layer_norm(x, (4,), v)),
    "an expanded scale": Holds((1,), lambda x, v: v.expand(4) * x),
}
ADDS: dict[str, Holds] = {
    "a bias": Holds((4,), lambda x, v: x + v),
    "a position table": Holds((2, 4), lambda x, v: (x + v).relu()),
    "a linear bias": Holds((3,), lambda x, v: functional.linear(x, torch.ones(3, 4), v)),
    "a shift of a norm": Holds((4,), lambda x, v: functional.layer_norm(x, (4,), torch.ones(4), v)),
    "an unused parameter": Holds((4,), lambda x, v: x),
    "a frozen copy": Holds((4,), lambda x, v: x * v.detach()),
}


@pytest.mark.parametrize("name", HIDES)
def test_a_zero_that_multiplies_the_signal_hides_it(name: str) -> None:
    model = HIDES[name]
    assert list(zero_by_design(model, [model(torch.ones(2, 4))])) == ["value"]


@pytest.mark.parametrize("name", ADDS)
def test_a_zero_that_is_added_hides_nothing(name: str) -> None:
    model = ADDS[name]
    assert zero_by_design(model, [model(torch.ones(2, 4))]) == {}


def test_a_parameter_with_one_element_that_is_not_zero_is_no_zero() -> None:
    model = Holds((4,), lambda x, v: x * v)
    with torch.no_grad():
        model.value[3] = 1e-30
    assert zero_by_design(model, [model(torch.ones(2, 4))]) == {}


def test_inside_it_is_open_and_afterwards_zero_again() -> None:
    model = Holds((3, 400), lambda x, v: x)
    with opened({"value": model.value}):
        assert model.value.std().item() == pytest.approx(400**-0.5, rel=0.1)
    assert not model.value.any()


def test_a_vector_is_opened_to_one_also_when_an_exception_ends_the_block() -> None:
    model = Holds((4,), lambda x, v: x)
    with pytest.raises(ZeroDivisionError):
        _raise_while_open(model)
    assert not model.value.any()


def _raise_while_open(model: Holds) -> None:
    with opened({"value": model.value}):
        assert model.value.eq(1).all()
        raise ZeroDivisionError


def test_a_graph_made_before_runs_backward_after() -> None:
    model = Holds((4,), lambda x, v: x + v * x.exp())
    out = model(torch.ones(2, 4, requires_grad=True)).sum()
    with opened({"value": model.value}):
        pass
    out.backward()
    assert model.value.grad is not None


def test_opening_draws_no_number_of_the_users() -> None:
    model = Holds((4, 4), lambda x, v: x)
    before = torch.get_rng_state()
    with opened({"value": model.value}):
        assert torch.equal(before, torch.get_rng_state())


def test_a_branch_behind_a_zero_is_read() -> None:
    branch = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    nn.init.zeros_(branch[2].weight)
    nn.init.zeros_(branch[2].bias)
    with torch.no_grad():
        branch[0].weight.mul_(1e-3)
    model = nn.Sequential(nn.Linear(8, 8), branch, nn.Linear(8, 2))
    report = sg.check(model, torch.randn(16, 8))
    assert report.record.facts["zero_by_design"] == ["1.2.weight"]
    gains = report.record.read("weight_gain", "weight")
    assert gains[2] == pytest.approx(0.0, abs=0.1)
    assert not branch[2].weight.any()
