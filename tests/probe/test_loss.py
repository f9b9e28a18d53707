import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steadygrad._check import Setup, trace
from steadygrad.probe.loss import loss as probe
from steadygrad.probe.subject import Readings, rng_states


def read(model: nn.Module, loss) -> Readings:
    return probe(trace(model, Setup(loss, loss, None, 0), rng_states()))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(12, 8)


@pytest.fixture
def labels() -> Tensor:
    return torch.arange(12) % 5


def net(out: int = 5, *end: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, out), *end)


def test_the_arguments_of_cross_entropy_are_read(x, labels) -> None:
    some = torch.where(labels == 0, -100, labels)
    (one,) = read(net(), lambda m: F.cross_entropy(m(x), some)).facts["losses"]
    assert one["name"] == "cross_entropy"
    assert one["classes"] == 5
    assert one["labels"] == 12
    assert one["effective"] == 12 - int((labels == 0).sum())
    assert one["constant_loss"] == pytest.approx(math.log(5))
    assert not one["probabilities"]


def test_a_loss_module_and_a_function_read_alike(x, labels) -> None:
    model, compare = net(), nn.CrossEntropyLoss()
    (one,) = read(model, lambda m: compare(m(x), labels)).facts["losses"]
    (other,) = read(model, lambda m: F.cross_entropy(m(x), labels)).facts["losses"]
    assert {**one, "line": []} == {**other, "line": []}


@pytest.mark.parametrize("count", [2, 10, 1000])
def test_what_a_softmax_before_cross_entropy_leaves_is_autograds_own(count, x) -> None:
    model = net(count, nn.Softmax(-1))
    y = torch.randint(count, (12,))
    (one,) = read(model, lambda m: F.cross_entropy(m(x), y)).facts["losses"]
    scores = model[:3](x).detach().double().requires_grad_()
    hot = torch.arange(count)[:64]
    twice = F.cross_entropy(
        scores.softmax(-1).repeat_interleave(len(hot), 0), hot.repeat(12), reduction="none"
    ).reshape(12, -1)
    once = F.cross_entropy(
        scores.repeat_interleave(len(hot), 0), hot.repeat(12), reduction="none"
    ).reshape(12, -1)

    def size(losses: Tensor) -> float:
        parts = [torch.autograd.grad(c.sum(), scores, retain_graph=True)[0] for c in losses.T]
        return float(torch.stack(parts).norm())

    assert one["softmax_factor"] == pytest.approx(size(twice) / size(once), rel=1e-4)


def test_a_difference_squared_by_hand_is_a_loss(x) -> None:
    y = 7 + torch.randn(12, 1)
    for square in (lambda d: d**2, torch.square, lambda d: d.pow(2), lambda d: d * d):
        (one,) = read(net(1), lambda m, f=square: f(y - m(x)).mean()).facts["losses"]
        assert one["name"] == "squared difference"
        assert one["target"]["mean"] == pytest.approx(float(y.mean()), rel=1e-5)


def test_a_loss_divided_by_a_statistic_is_normalised(x) -> None:
    y = 300 + torch.randn(12, 1)
    (one,) = read(net(1), lambda m: F.mse_loss(m(x), y) / y.var()).facts["losses"]
    (other,) = read(net(1), lambda m: F.mse_loss(m(x), y) / 9.0).facts["losses"]
    assert one["divided"]
    assert not other["divided"]


@pytest.mark.parametrize(
    ("end", "op"),
    [
        (nn.Softmax(-1), "softmax"),
        (nn.LogSoftmax(-1), "logsoftmax"),
        (nn.Sigmoid(), "sigmoid"),
        (nn.ReLU(), "relu"),
    ],
)
def test_the_end_of_the_network_is_found_through_views(end, op, x, labels) -> None:
    model = net(5, end, nn.Flatten())
    (one,) = read(model, lambda m: F.cross_entropy(m(x).reshape(-1, 5), labels)).facts["losses"]
    assert one["end"]["op"] == op
    assert one["end"]["module"] == "3"
    assert one["end"]["feeder"] == "2"


def test_a_ctc_input_that_is_too_short_is_counted() -> None:
    model = nn.Linear(4, 6)
    h, targets = torch.randn(5, 2, 4), torch.tensor([[1, 1, 2, 3], [1, 2, 3, 4]])
    steps, lengths = torch.tensor([5, 5]), torch.tensor([4, 4])

    def loss(m: nn.Module) -> Tensor:
        return F.ctc_loss(m(h).log_softmax(-1), targets, steps, lengths)

    (one,) = read(model, loss).facts["losses"]
    assert one["too_short"] == []
    targets[0, 3] = 2
    (one,) = read(model, loss).facts["losses"]
    assert one["too_short"] == [[0, 5, 6]]


def test_a_gradient_that_is_exactly_zero_at_the_outputs_is_blocked(x) -> None:
    facts = read(net(), lambda m: m(x).clamp(5, 6).mean()).facts
    assert facts["loss"]["blocked"]
    assert not read(net(), lambda m: m(x).mean()).facts["loss"]["blocked"]


def test_without_a_loss_function_the_losses_are_not_seen(x) -> None:
    assert "losses" in read(net(), lambda m: m(x).mean()).blind


def test_the_pass_is_not_run_again(x, labels) -> None:
    calls = []

    def loss(m: nn.Module) -> Tensor:
        calls.append(1)
        return F.cross_entropy(m(x), labels)

    assert len(read(net(), loss).facts["losses"]) == len(calls) == 1


def test_a_network_that_is_frozen_gives_targets_though_its_inputs_are_watched(x) -> None:
    fixed = net(1).requires_grad_(False)
    model = nn.ModuleList([net(1), fixed])
    for loss in (
        lambda m: (m[0](x) - m[1](x)).square().mean(),
        lambda m: (m[1](x) - m[0](x)).square().mean(),
    ):
        (one,) = read(model, loss).facts["losses"]
        with torch.no_grad():
            assert one["input"]["mean"] == pytest.approx(float(model[0](x).mean()), rel=1e-5)
            assert one["target"]["mean"] == pytest.approx(float(fixed(x).mean()), rel=1e-5)


def test_a_loss_of_a_frozen_network_alone_is_none(x) -> None:
    class Distance(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            return F.mse_loss(h, torch.zeros_like(h))

    model = nn.ModuleList([net(1), Distance()])
    (one,) = read(model, lambda m: F.mse_loss(m[0](x), x[:, :1]) + m[1](x)).facts["losses"]
    assert one["module"] is None
