import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steadygrad._check import Setup, trace
from steadygrad.core.finding import Finding, Severity
from steadygrad.core.record import record_of
from steadygrad.core.report import diagnose
from steadygrad.detectors.axis import wrong_axis
from steadygrad.detectors.data import label_out_of_range
from steadygrad.detectors.loss import blocked_output
from steadygrad.probe.dropped import dropped
from steadygrad.probe.loss import loss as loss_probe
from steadygrad.probe.nonfinite import first_nonfinite
from steadygrad.probe.subject import rng_states

ENDS = (blocked_output, label_out_of_range, wrong_axis)


def findings(model: nn.Module, loss=None, inputs: Tensor | None = None) -> list[Finding]:
    forward = loss or (lambda m: m(inputs))
    subject = trace(model, Setup(forward, loss, None, 0), rng_states())
    facts = {**first_nonfinite(subject).facts, **loss_probe(subject).facts}
    facts |= dropped(subject).facts
    return list(diagnose(record_of([], facts), ENDS).findings)


def net(out: int, *end: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, out), *end)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(12, 8)


@pytest.mark.parametrize(
    ("end", "classes", "severity"),
    [
        (nn.Identity(), 5, None),
        (nn.LogSoftmax(-1), 5, None),
        (nn.Softmax(-1), 5, Severity.risk),
        (nn.Softmax(-1), 500, Severity.broken),
        (nn.Sigmoid(), 5, Severity.risk),
    ],
)
def test_softmax_before_cross_entropy_is_found_and_log_softmax_is_not(
    end, classes, severity, x
) -> None:
    labels = torch.arange(12) % classes
    found = findings(net(classes, end), lambda m: F.cross_entropy(m(x), labels))
    assert [one.severity for one in found] == ([] if severity is None else [severity])
    assert all(one.where[0] == "3" for one in found)


def test_a_softmax_over_one_unit_is_broken_with_and_without_a_loss(x) -> None:
    model, y = net(1, nn.Softmax(-1)), torch.ones(12, 1)
    for found in (
        findings(model, lambda m: F.binary_cross_entropy(m(x), y)),
        findings(model, lambda m: F.mse_loss(m(x), y)),
        findings(model, inputs=x),
    ):
        assert [(one.severity, one.where[0]) for one in found] == [(Severity.broken, "3")]


def test_cross_entropy_over_one_class_is_broken(x) -> None:
    labels = torch.zeros(12, dtype=torch.long)
    (found,) = findings(net(1), lambda m: F.cross_entropy(m(x), labels))
    assert found.severity is Severity.broken


def test_a_sigmoid_belongs_before_one_of_two_losses(x) -> None:
    y = (torch.randn(12, 1) > 0).float()
    model = net(1, nn.Sigmoid())
    (found,) = findings(model, lambda m: F.binary_cross_entropy_with_logits(m(x), y))
    assert found.severity is Severity.risk
    assert findings(model, lambda m: F.binary_cross_entropy(m(x), y)) == []


def test_a_last_relu_that_shuts_everything_is_broken(x) -> None:
    model = net(1, nn.ReLU())
    with torch.no_grad():
        model[2].bias.fill_(-50)
    (found,) = findings(model, lambda m: F.mse_loss(m(x), torch.ones(12, 1)))
    assert found.severity is Severity.broken
    with torch.no_grad():
        model[2].bias.fill_(1)
    assert findings(model, lambda m: F.mse_loss(m(x), torch.ones(12, 1))) == []


def test_a_saturated_sigmoid_that_is_wrong_is_broken(x) -> None:
    model, y = net(1, nn.Sigmoid()), (torch.arange(12.0).unsqueeze(1) % 2)
    with torch.no_grad():
        model[2].weight.mul_(1e5)
    (found,) = findings(model, lambda m: F.binary_cross_entropy(m(x), y))
    assert found.severity is Severity.broken


@pytest.mark.parametrize(
    ("end", "target", "count"),
    [
        (nn.Tanh(), 40.0, 1),
        (nn.Tanh(), 0.5, 0),
        (nn.Sigmoid(), 0.5, 0),
        (nn.Sigmoid(), -3.0, 1),
        (nn.ReLU(), 40.0, 0),
        (nn.ReLU(), -3.0, 1),
    ],
)
def test_targets_beyond_the_last_squash_are_found(end, target, count, x) -> None:
    y = target + 0.1 * torch.randn(12, 1)
    assert len(findings(net(1, end), lambda m: F.mse_loss(m(x), y))) == count


def test_a_loss_that_is_flat_at_the_outputs_is_broken(x) -> None:
    (found,) = findings(net(1), lambda m: m(x).clamp(50, 60).mean())
    assert (found.severity, found.where) == (Severity.broken, ("loss",))


def test_a_zero_head_is_no_blocked_output(x) -> None:
    model = net(5)
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[2].bias)
    labels = torch.arange(12) % 5
    assert findings(model, lambda m: F.cross_entropy(m(x), labels)) == []


@pytest.mark.parametrize("drop", [nn.Dropout(1.0), nn.AlphaDropout(1.0)])
def test_a_dropout_that_drops_everything_is_named(drop: nn.Module, x) -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), drop, nn.Linear(16, 3))
    found = next(iter(findings(model, inputs=x)))
    assert (found.severity, found.where) == (Severity.broken, ("2",))
    assert "everything is dropped" in found.says


@pytest.mark.parametrize("p", [0.0, 0.5, 0.9])
def test_a_dropout_that_keeps_something_is_healthy(p: float, x) -> None:
    assert findings(nn.Sequential(nn.Linear(8, 16), nn.Dropout(p), nn.Linear(16, 3)), None, x) == []


@pytest.mark.parametrize(("axis", "codes"), [(0, ["G305"]), (1, [])])
@pytest.mark.parametrize("loss", ["nll", "cross-entropy"])
def test_a_softmax_over_the_samples_is_named(axis: int, codes: list[str], loss: str, x) -> None:
    labels = torch.arange(12) % 5

    def compare(model: nn.Module) -> Tensor:
        if loss == "nll":
            return F.nll_loss(F.log_softmax(model(x), axis), labels)
        return F.cross_entropy(F.softmax(model(x), axis), labels)

    found = findings(net(5), compare)
    twice = ["G303"] if loss == "cross-entropy" and axis == 1 else []
    assert [one.code for one in found] == codes + twice
    assert all(one.where == ("loss", "2") for one in found)


def test_a_softmax_over_the_samples_is_fine_where_samples_are_contrasted(x) -> None:
    def contrast(model: nn.Module) -> Tensor:
        codes = F.normalize(model(x), dim=1)
        return F.nll_loss(F.log_softmax(codes @ codes.T / 0.1, 0), torch.arange(12))

    assert findings(net(5), contrast) == []


def test_a_class_shut_behind_a_last_relu_is_a_risk(x) -> None:
    x, model = x.repeat(4, 1), net(5, nn.ReLU())
    labels = torch.arange(48) % 5
    with torch.no_grad():
        model[2].bias.copy_(torch.tensor([9.0, 9.0, 9.0, 9.0, -9.0]))
    (found,) = findings(model, lambda m: F.cross_entropy(m(x), labels))
    assert (found.severity, found.where[0], found.evidence["shut"]) == (Severity.risk, "3", 1)
    assert findings(model, lambda m: F.cross_entropy(m(x), labels % 4)) == []  # nobody asks for it
