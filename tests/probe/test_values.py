"""See which weights can never part, which are garbage, and which are copies."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from steadygrad._check import Setup, trace
from steadygrad.probe.subject import Subject, rng_states
from steadygrad.probe.values import compare_builds, garbage, values

X, Y = torch.randn(16, 8), torch.arange(16) % 4


def subject_of(model: nn.Module, with_loss: bool = True) -> Subject:
    loss = (lambda m: functional.cross_entropy(m(X), Y)) if with_loss else None
    return trace(model, Setup(loss or (lambda m: m(X)), loss, None, 0), rng_states())


def stuck(model: nn.Module, with_loss: bool = True) -> list[str]:
    facts = values(subject_of(model, with_loss)).facts["values"]
    return [row["name"] for row in facts["stuck"]]


def chain(*extra: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), *extra, nn.Linear(16, 16), nn.Linear(16, 4))


def filled(model: nn.Module, value: float) -> nn.Module:
    for one in model.parameters():
        nn.init.constant_(one, value if one.dim() > 1 else 0.0)
    return model


class Branch(nn.Module):
    """A residual branch whose last layer, and whose gate, may be zero."""

    def __init__(self, zero_last: bool, gate: float) -> None:
        super().__init__()
        self.body, self.last = nn.Linear(8, 8), nn.Linear(8, 8)
        self.gate = nn.Parameter(torch.full((1, 8), gate))
        if zero_last:
            nn.init.zeros_(self.last.weight)
            nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gate * self.last(torch.relu(self.body(x)))


class Adapter(nn.Module):
    """A low-rank update of a frozen layer."""

    def __init__(self, a_is_zero: bool) -> None:
        super().__init__()
        self.base = nn.Linear(8, 4).requires_grad_(False)
        self.a, self.b = nn.Linear(8, 2, bias=False), nn.Linear(2, 4, bias=False)
        nn.init.zeros_(self.b.weight)
        if a_is_zero:
            nn.init.zeros_(self.a.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.b(self.a(x))


class Experts(nn.Module):
    """Two experts, of which the second is never asked and starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(8, 4), nn.Linear(8, 4)])
        nn.init.zeros_(self.experts[1].weight)

    def forward(self, x: Tensor) -> Tensor:
        asked = torch.ones(len(x))[:, None]
        return asked * self.experts[0](x) + (1 - asked) * self.experts[1](x)


@pytest.mark.parametrize("with_loss", [True, False])
@pytest.mark.parametrize("value", [0.0, 0.5])
def test_equal_weights_everywhere_never_part(value: float, with_loss: bool) -> None:
    assert stuck(filled(chain(), value), with_loss)


def test_drawn_weights_are_not_stuck() -> None:
    assert stuck(chain()) == []


def test_equal_units_before_drawn_ones_part() -> None:
    model = chain()
    nn.init.constant_(model[0].weight, 0.3)
    assert stuck(model) == []


def test_dropout_parts_equal_units() -> None:
    assert stuck(filled(chain(), 0.2)) == ["0.weight", "2.weight"]
    assert stuck(filled(chain(nn.Dropout(0.5)), 0.2)) == ["3.weight"]


def test_a_zero_head_heals() -> None:
    model = chain()
    nn.init.zeros_(model[-1].weight)
    assert stuck(model) == []


def test_a_zero_branch_heals_and_so_does_a_zero_gate() -> None:
    for zero_last, gate in ((True, 1.0), (False, 0.0)):
        assert stuck(nn.Sequential(Branch(zero_last, gate), nn.Linear(8, 4))) == []


def test_a_zero_gate_on_a_zero_branch_never_heals() -> None:
    model = nn.Sequential(Branch(True, 0.0), nn.Linear(8, 4))
    assert stuck(model) == ["0.gate", "0.last.weight"]


def test_a_zero_gate_and_branch_before_a_zero_head_heals_where_it_can() -> None:
    model = nn.Sequential(Branch(True, 1.0), nn.Linear(8, 4))
    nn.init.zeros_(model[1].weight)
    assert stuck(model) == []


def test_one_zero_factor_heals_and_two_do_not() -> None:
    assert stuck(Adapter(a_is_zero=False)) == []
    assert set(stuck(Adapter(a_is_zero=True))) == {"a.weight", "b.weight"}


def test_an_expert_that_is_not_asked_is_not_stuck() -> None:
    assert stuck(Experts()) == []


def test_frozen_constant_kernels_are_left_alone() -> None:
    blur = nn.Conv1d(1, 2, 3, padding=1, bias=False).requires_grad_(False)
    nn.init.constant_(blur.weight, 1 / 3)
    model = nn.Sequential(nn.Unflatten(1, (1, 8)), blur, nn.Flatten(), nn.Linear(16, 4))
    assert stuck(model) == []


def test_garbage_is_seen_and_drawn_weights_are_not_garbage() -> None:
    model = chain()
    assert garbage(dict(model.named_parameters())) == []
    with torch.no_grad():
        model[0].weight[0, 0] = 3e33
        model[2].weight[:4] = 1e-41
    assert garbage(dict(model.named_parameters())) == ["0.weight", "2.weight"]


def test_two_builds_are_compared_bit_by_bit() -> None:
    first = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    second = copy.deepcopy(first)
    assert compare_builds(first, second) == []
    with torch.no_grad():
        second[0].weight[0, 0] += 1
        second[1].running_mean.fill_(float("nan"))
    assert compare_builds(first, second) == ["0.weight", "1.running_mean"]
    assert compare_builds(first, first[:1]) == [
        name for name, _ in [*first.named_parameters(), *first.named_buffers()] if name[0] == "1"
    ]


def test_copies_are_clones_and_shared_weights_are_not() -> None:
    layer = nn.Linear(8, 8)
    copies = nn.Sequential(layer, copy.deepcopy(layer))
    assert values(subject_of(copies)).facts["clones"] == [["0.weight", "1.weight"]]
    assert values(subject_of(nn.Sequential(layer, layer))).facts["clones"] == []


def test_a_frozen_copy_is_not_a_clone() -> None:
    layer = nn.Linear(8, 8)
    model = nn.Sequential(layer, copy.deepcopy(layer).requires_grad_(False))
    assert values(subject_of(model)).facts["clones"] == []


def test_the_model_and_the_random_generator_stay_as_they_were() -> None:
    model = filled(chain(nn.Dropout(0.5)), 0.0)
    subject = subject_of(model)
    before, state = torch.get_rng_state(), copy.deepcopy(model.state_dict())
    values(subject)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one, state[name]) for name, one in model.state_dict().items())
    assert all(one.grad is None for one in model.parameters())
