import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steadygrad._check import Setup, trace
from steadygrad.core.finding import Finding, Severity
from steadygrad.core.record import record_of
from steadygrad.core.report import diagnose
from steadygrad.detectors.numbers import (
    half_precision_overflow,
    nonfinite_backward,
    nonfinite_data,
    nonfinite_forward,
    nonfinite_loss,
    norm_overflow,
    poisoned_buffer,
)
from steadygrad.probe.births import Birth, address, told
from steadygrad.probe.loss import loss as loss_probe
from steadygrad.probe.nonfinite import first_nonfinite
from steadygrad.probe.subject import rng_states

DETECTORS = (
    nonfinite_data,
    poisoned_buffer,
    half_precision_overflow,
    nonfinite_forward,
    nonfinite_loss,
    nonfinite_backward,
    norm_overflow,
)


def findings(model: nn.Module, loss) -> list[Finding]:
    subject = trace(model, Setup(loss, loss, None, 0), rng_states())
    facts = {**first_nonfinite(subject).facts, **loss_probe(subject).facts}
    return list(diagnose(record_of([], facts), DETECTORS).findings)


def the_only(model: nn.Module, loss) -> Finding:
    (found,) = findings(model, loss)
    return found


def net(out: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, out))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(6, 8)


def test_one_nan_in_the_data_explains_everything(x) -> None:
    x[3, 5] = math.nan
    found = the_only(net(), lambda m: m(x).square().mean())
    assert (found.code, found.where) == ("G001", ("data",))
    assert "sample 3" in found.says
    assert "[3, 5]" in found.says


def test_data_that_the_model_cleans_are_a_note(x) -> None:
    x[3, 5] = math.nan
    model = nn.Sequential(Clean(), net())
    assert the_only(model, lambda m: m(x).square().mean()).severity is Severity.note


class Clean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.nan_to_num()


def test_one_nan_in_the_target_is_found(x) -> None:
    y = torch.randn(6, 4)
    y[2, 0] = math.inf
    found = the_only(net(), lambda m: F.mse_loss(m(x), y))
    assert (found.code, found.where) == ("G001", ("target",))


def test_a_broken_weight_is_named(x) -> None:
    model = net()
    with torch.no_grad():
        model[2].weight[1, 1] = math.nan
    found = the_only(model, lambda m: m(x).square().mean())
    assert (found.code, found.where) == ("G002", ("2",))


def test_a_broken_op_of_the_loss_is_blamed_on_the_loss(x) -> None:
    found = the_only(net(), lambda m: (m(x) - 100).log().mean())
    assert (found.code, found.where) == ("G003", ("loss",))
    assert "log" in found.says
    assert __file__ in found.says


def test_an_infinite_slope_says_where_and_what_to_write_instead(x) -> None:
    found = the_only(net(), lambda m: (m(x) * 0).square().sum(-1).sqrt().mean())
    assert (found.code, found.where) == ("G004", ("loss",))
    assert "eps inside the root" in found.try_next[0].patch


def test_a_masked_pole_is_told_to_mask_its_input(x) -> None:
    def loss(m: nn.Module) -> Tensor:
        h = m(x) * 0
        return torch.where(h > 0, h.log(), torch.zeros_like(h)).sum()

    found = the_only(net(), loss)
    assert found.code == "G004"
    assert found.try_next[0].remedy == "mask-the-input"


def test_a_padded_sample_is_blamed_on_its_mask() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    h, pad = torch.randn(3, 5, 8), torch.zeros(3, 5, dtype=torch.bool)
    pad[1] = True

    def loss(m: nn.Module) -> Tensor:
        return m(h, h, h, key_padding_mask=pad)[0][[0, 2]].square().mean()

    found = the_only(attention, loss)
    assert found.code == "G004"
    assert "masked throughout" in found.says
    pad[1, 0] = False
    assert findings(attention, loss) == []


def test_finite_gradients_without_a_finite_norm_are_found(x) -> None:
    found = the_only(net(), lambda m: m(x).square().mean() * 1e22)
    assert found.code == "G006"
    assert findings(net(), lambda m: m(x).square().mean() * 1e12) == []


class Half(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.wo = nn.Linear(8, 8, bias=False).half()
        self.norm = nn.LayerNorm(8)
        nn.init.constant_(self.wo.weight, scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm((x.half() + self.wo(x.half())).float())


@pytest.mark.parametrize(
    ("scale", "severity"), [(1e4, Severity.broken), (2e3, Severity.risk), (1.0, None)]
)
def test_half_precision_names_the_layer_and_not_the_norm_behind_it(scale, severity) -> None:
    x = torch.full((4, 8), 2.0)
    found = findings(Half(scale), lambda m: m(x).square().mean())
    assert [one.severity for one in found] == ([] if severity is None else [severity])
    assert all(one.code == "G007" and one.where == ("wo",) for one in found)


def test_a_poisoned_running_mean_is_broken_and_a_mask_of_infinities_is_not(x) -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4))
    model.register_buffer("mask", torch.full((4, 4), -math.inf).triu(1))
    assert findings(model, lambda m: m(x).square().mean()) == []
    model[1].running_mean[2] = math.inf
    found = the_only(model, lambda m: m(x).square().mean())
    assert (found.code, found.where) == ("G009", ("1",))


def test_a_scaled_loss_moves_no_verdict(x) -> None:
    for factor in (1e-6, 1.0, 1e6):
        assert findings(net(), lambda m, f=factor: f * m(x).square().mean()) == []


def test_a_constant_that_came_broken_is_named_with_the_op_it_enters(x) -> None:
    weight = torch.tensor([1.0, 2.0, math.inf, 1.0])
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    found = the_only(net(), lambda m: F.cross_entropy(m(x), labels, weight))
    assert (found.code, found.where) == ("G003", ("loss",))
    assert "cross_entropy" in found.says
    assert "inf at [2]" in found.says


def test_a_known_birth_of_a_constant_is_told(x) -> None:
    advantage = torch.tensor([math.nan])
    birth = Birth("std", ("a.py", 3), "nan", {"input": "1 value, 0.5"}, "advantage")

    def loss(m: nn.Module) -> Tensor:
        with told({address(advantage): birth}):
            return (m(x) * advantage).mean()

    found = the_only(net(), loss)
    assert found.code == "G003"
    assert (
        "advantage is made by std, which makes NaN of input = 1 value, 0.5 (a.py:3)" in found.says
    )
    assert found.try_next[0].remedy == "safe-std"


def test_a_masked_score_at_the_label_is_named_with_its_sample(x) -> None:
    labels, mask = torch.tensor([0, 1, 2, 3, 0, 1]), torch.zeros(6, 4, dtype=torch.bool)
    mask[4, 0] = mask[1, 3] = True
    found = the_only(net(), lambda m: F.cross_entropy(m(x).masked_fill(mask, -math.inf), labels))
    assert (found.code, found.where) == ("G003", ("loss",))
    assert "sample 4 has the label 0" in found.says
    assert "masked_fill" in found.says


def test_masked_scores_away_from_the_labels_are_healthy(x) -> None:
    labels, mask = torch.zeros(6, dtype=torch.long), torch.zeros(6, 4, dtype=torch.bool)
    mask[:, 3] = True
    loss = lambda m: F.cross_entropy(m(x).masked_fill(mask, -math.inf), labels)  # noqa: E731
    assert findings(net(), loss) == []


def test_a_sum_over_masked_scores_is_named(x) -> None:
    found = the_only(net(), lambda m: m(x).masked_fill(m(x) > 0, -math.inf).mean())
    assert found.code == "G003"
    assert "mean in the loss adds up what is -inf" in found.says


class Pooled(nn.Module):
    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.body, self.head, self.mask = nn.Linear(8, 4), nn.Linear(4, 2), mask

    def forward(self, x: Tensor) -> Tensor:
        mean = (self.body(x) * self.mask).sum(1) / self.mask.sum(1)
        scores: Tensor = self.head(mean)
        return scores


def test_a_row_whose_mask_is_all_zero_is_the_datas_fault() -> None:
    mask = torch.ones(6, 5, 1)
    mask[2] = 0
    found = the_only(Pooled(mask), lambda m: m(torch.randn(6, 5, 8)).square().mean())
    assert (found.code, found.where) == ("G002", ("data",))
    assert "mask is all zero" in found.says
    assert "[2, 0]" in found.says


def test_what_another_part_computed_is_no_data() -> None:
    both = nn.ModuleList([nn.Linear(8, 4), nn.Linear(4, 2)])
    found = the_only(both, lambda m: m[1](m[0](torch.ones(3, 8)) * torch.tensor(math.nan)).mean())
    assert found.code == "G003"


class Squared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(x) ** 2


def test_a_power_beyond_half_precision_is_its_overflow() -> None:
    x = 3000 * torch.randn(6, 8).half()
    found = the_only(Squared().half(), lambda m: m(x).float().square().mean())
    assert (found.code, found.severity) == ("G007", Severity.broken)
    assert "65504, the largest number of float16 (half precision)" in found.says
    assert found.try_next[0].remedy == "bfloat16"
