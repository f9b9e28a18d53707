import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steadygrad._check import Setup, trace
from steadygrad.core.finding import Finding, Severity
from steadygrad.core.record import record_of
from steadygrad.core.report import diagnose
from steadygrad.detectors.data import (
    empty_supervision,
    explain_exception,
    exploding_head,
    label_out_of_range,
    singular_normalisation,
    unscaled_input,
    unscaled_target,
)
from steadygrad.probe.data import data
from steadygrad.probe.loss import loss as loss_probe
from steadygrad.probe.nonfinite import first_nonfinite
from steadygrad.probe.subject import rng_states

DETECTORS = (
    empty_supervision,
    label_out_of_range,
    unscaled_input,
    unscaled_target,
    exploding_head,
    singular_normalisation,
)


def findings(model: nn.Module, loss) -> list[Finding]:
    subject = trace(model, Setup(loss, loss, None, 0), rng_states())
    readings = [probe(subject) for probe in (first_nonfinite, loss_probe, data)]
    facts = {key: value for one in readings for key, value in one.facts.items()}
    return list(diagnose(record_of([], facts), DETECTORS).findings)


def net(out: int = 1, *end: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, out), *end)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(12, 8)


@pytest.fixture
def y() -> Tensor:
    return torch.randn(12, 1)


@pytest.mark.parametrize(("scale", "codes"), [(1.0, []), (30.0, []), (255.0, ["G601"])])
def test_inputs_of_a_few_tens_are_healthy_and_pixels_are_not(scale, codes, x, y) -> None:
    found = findings(net(), lambda m: F.mse_loss(m(scale * x), y))
    assert [one.code for one in found] == codes


def test_a_norm_takes_large_inputs_in(x, y) -> None:
    for model in (
        nn.Sequential(nn.BatchNorm1d(8), net()),
        nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), net()),
    ):
        assert findings(model, lambda m: F.mse_loss(m(1000 * x), y)) == []


def test_one_feature_that_drowns_the_others_is_named(x, y) -> None:
    x[:, 5] *= 1e5
    (found,) = findings(net(), lambda m: F.mse_loss(m(x), y))
    assert found.code == "G601"
    assert "feature 5" in found.says


@pytest.mark.parametrize(
    ("shift", "severity"), [(0, None), (5, None), (20, None), (60, Severity.note), (1e4, 1)]
)
def test_targets_are_unscaled_when_they_are_far_away(shift, severity, x, y) -> None:
    found = findings(net(), lambda m: F.mse_loss(m(x), y + shift))
    assert [one.severity for one in found] == ([] if severity is None else [severity])


@pytest.mark.parametrize("factor", [1e-4, 1.0, 1e4])
def test_a_factor_on_the_loss_does_not_move_the_targets(factor, x, y) -> None:
    far = findings(net(), lambda m: factor * F.mse_loss(m(x), 1e4 * y))
    near = findings(net(), lambda m: factor * F.mse_loss(m(x), y, reduction="sum"))
    assert [one.code for one in far] == ["G602"]
    assert near == []


def test_a_prediction_in_the_targets_units_is_healthy(x, y) -> None:
    assert findings(net(), lambda m: F.mse_loss(1e4 * m(x) + 3e4, 1e4 * y + 3e4)) == []


def test_binary_targets_outside_of_0_and_1_have_no_lower_bound(x, y) -> None:
    compare = F.binary_cross_entropy_with_logits
    (found,) = findings(net(), lambda m: compare(m(x), y.sign()))
    assert (found.code, found.severity) == ("G603", Severity.broken)
    assert findings(net(), lambda m: compare(m(x), (y > 0).float())) == []


@pytest.mark.parametrize(
    ("end", "codes"),
    [(nn.LogSoftmax(-1), []), (nn.Softmax(-1), ["G603"]), (nn.Identity(), ["G603"])],
)
def test_nll_loss_wants_log_probabilities(end, codes, x) -> None:
    labels = torch.arange(12) % 5
    found = findings(net(5, end), lambda m: F.nll_loss(m(x), labels))
    assert [one.code for one in found] == codes


@pytest.mark.parametrize(
    ("run", "where"),
    [
        (lambda: F.cross_entropy(torch.zeros(2, 3), torch.tensor([1, 3])), "target"),
        (lambda: F.cross_entropy(torch.zeros(2, 3), torch.tensor([-1, 1])), "target"),
        (lambda: F.nll_loss(torch.zeros(2, 3), torch.tensor([5, 1])), "target"),
        (lambda: nn.Embedding(3, 2)(torch.tensor([3])), "data"),
        (lambda: F.binary_cross_entropy(torch.full((2,), 3.0), torch.ones(2)), "loss"),
        (lambda: F.one_hot(torch.tensor([4]), 3), "target"),
    ],
)
def test_what_torch_raises_over_a_label_is_translated(run, where) -> None:
    with pytest.raises((IndexError, RuntimeError)) as raised:
        run()
    found = explain_exception(raised.value)
    assert found is not None
    assert (found.code, found.where) == ("G603", (where,))


def test_other_exceptions_are_not_explained() -> None:
    assert explain_exception(ValueError("no such thing")) is None


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_batch_without_labels_is_empty(reduction, x) -> None:
    labels = torch.full((12,), -100)
    (found,) = findings(net(5), lambda m: F.cross_entropy(m(x), labels, reduction=reduction))
    assert (found.code, found.severity) == ("G604", Severity.broken)
    labels[0] = 1
    assert findings(net(5), lambda m: F.cross_entropy(m(x), labels)) == []


def test_an_average_over_an_empty_mask_is_empty(x, y) -> None:
    mask = torch.zeros(12, 1)

    def loss(m: nn.Module) -> Tensor:
        return ((m(x) - y).square() * mask).sum() / mask.sum()

    (found,) = findings(net(), loss)
    assert found.code == "G604"
    mask[3] = 1
    assert findings(net(), loss) == []


def test_a_ctc_target_that_cannot_be_aligned_is_found() -> None:
    h, targets = torch.randn(5, 2, 8), torch.tensor([[1, 1, 2, 2], [1, 2, 3, 4]])
    sizes = torch.tensor([5, 5]), torch.tensor([4, 4])

    def loss(m: nn.Module) -> Tensor:
        return F.ctc_loss(m(h).log_softmax(-1), targets, *sizes)

    (found,) = findings(net(6), loss)
    assert found.code == "G604"
    assert "sample 0 has 5 steps and needs 6" in found.says


@pytest.mark.parametrize(
    ("exponent", "severity"), [(2.0, None), (30.0, Severity.risk), (100.0, Severity.broken)]
)
def test_an_exponential_of_a_free_prediction_is_found(exponent, severity, x) -> None:
    model = net()
    with torch.no_grad():
        model[2].bias.fill_(exponent)
    found = findings(model, lambda m: m(x).exp().mean())
    assert [(one.code, one.severity) for one in found] == (
        [] if severity is None else [("G605", severity)]
    )
    assert all(one.where == ("2",) for one in found)


def test_a_zero_row_that_is_normalised_is_found_and_a_bias_saves_it(x) -> None:
    x[3] = 0
    goal = torch.randn(12, 4)

    def loss(m: nn.Module) -> Tensor:
        return -F.cosine_similarity(m(x), goal).mean()

    model = nn.Linear(8, 4)
    assert findings(model, loss) == []
    nn.init.zeros_(model.bias)
    (found,) = findings(model, loss)
    assert found.code == "G606"
    assert "rows 3" in found.says
