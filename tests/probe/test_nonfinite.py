import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steadygrad._check import Setup, trace
from steadygrad.probe.nonfinite import first_nonfinite
from steadygrad.probe.subject import Readings, rng_states


def read(model: nn.Module, loss, inputs: Tensor | None = None) -> Readings:
    forward = loss or (lambda m: m(inputs))
    return first_nonfinite(trace(model, Setup(forward, loss, None, 0), rng_states()))


class Op(nn.Module):
    """A layer, and an operation of the user's own on what it puts out."""

    def __init__(self, operation) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)
        nn.init.zeros_(self.layer.bias)
        self.operation = Apply(operation)

    def forward(self, x: Tensor) -> Tensor:
        return self.operation(self.layer(x))


class Apply(nn.Module):
    def __init__(self, operation) -> None:
        super().__init__()
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        return self.operation(x)


def summed(model: nn.Module, x: Tensor):
    return model(x).sum()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def x() -> Tensor:
    drawn = torch.randn(6, 8)
    drawn[2] = 0.0
    return drawn


@pytest.mark.parametrize(
    ("operation", "op", "result"),
    [
        (lambda h: (h - 100).sqrt(), "sqrt", "nan"),
        (lambda h: (h * 0).log(), "log", "-inf"),
        (lambda h: (h * 0 + 100).exp(), "exp", "inf"),
        (lambda h: h / (h.detach() * 0), "div", "inf"),
        (lambda h: (h - 50) ** 1.5, "pow", "nan"),
        (lambda h: (h * 0 + 2).acos(), "acos", "nan"),
        (lambda h: F.layer_norm((h * 0).log(), (4,)), "log", "-inf"),
        (lambda h: (h - 100).sqrt().sqrt(), "sqrt", "nan"),
    ],
)
def test_the_first_op_that_breaks_a_finite_signal_is_named(operation, op, result, x) -> None:
    found = read(Op(operation), lambda m: summed(m, x)).facts["nonfinite"]["forward"]
    assert (found["op"], found["module"]) == (op, "operation")
    assert found["result"] == result or (op == "div" and found["result"] in ("-inf", "nan"))
    assert found["line"][0] == __file__


def test_the_value_and_the_place_that_broke_are_told(x) -> None:
    x[4] = -7.0

    def operation(h: Tensor) -> Tensor:
        h = h.abs() + 1
        return torch.cat([h[:4], h[4:5] * 0 - 3, h[5:]]).log()

    found = read(Op(operation), lambda m: summed(m, x)).facts["nonfinite"]["forward"]
    assert found["values"]["input"] == "-3"
    assert found["index"] == [4, 0]


def test_an_infinity_that_was_asked_for_is_no_culprit(x) -> None:
    mask = torch.full((4, 4), -math.inf).triu(1)

    def attend(h: Tensor) -> Tensor:
        scores = (h @ h.T)[:4, :4] + mask
        return scores.masked_fill(mask == 1, -math.inf).softmax(-1)

    facts = read(Op(attend), lambda m: summed(m, x)).facts["nonfinite"]
    assert facts["forward"] == {}
    assert facts["gradients"] == []


def test_a_row_that_is_masked_throughout_is_said_to_be(x) -> None:
    def attend(h: Tensor) -> Tensor:
        mask = torch.zeros(6, 6)
        mask[1] = -math.inf
        return (h @ h.T + mask).softmax(-1)

    found = read(Op(attend), lambda m: summed(m, x)).facts["nonfinite"]["forward"]
    assert found["op"] == "softmax"
    assert found["all_masked"]
    assert found["index"][0] == 1


def test_a_softmax_by_hand_over_a_masked_row_is_found_too(x) -> None:
    def attend(h: Tensor) -> Tensor:
        mask = torch.zeros(6, 6)
        mask[1] = -math.inf
        scores = h @ h.T + mask
        weight = (scores - scores.max(-1, keepdim=True).values).exp()
        return weight / weight.sum(-1, keepdim=True)

    found = read(Op(attend), lambda m: summed(m, x)).facts["nonfinite"]["forward"]
    assert found["all_masked"]


@pytest.mark.parametrize(
    ("operation", "op", "value"),
    [
        (lambda h: h.square().sum(-1).sqrt(), "sqrt", "0"),
        (lambda h: h.abs() ** 0.5, "pow", "0"),
        (lambda h: torch.where(h > 0, (h.abs()).log(), torch.zeros_like(h)), "log", "0"),
    ],
)
def test_the_first_op_with_an_infinite_slope_is_named(operation, op, value, x) -> None:
    facts = read(Op(operation), lambda m: summed(m, x)).facts["nonfinite"]
    assert facts["loss"] is False
    assert (facts["backward"]["op"], facts["backward"]["module"]) == (op, "operation")
    assert value in facts["backward"]["values"].values()
    assert facts["backward"]["index"][0] == 2


def test_a_masked_infinity_says_that_no_gradient_arrived(x) -> None:
    def hidden(h: Tensor) -> Tensor:
        return torch.where(h != 0, h.abs().log(), torch.zeros_like(h))

    facts = read(Op(hidden), lambda m: summed(m, x)).facts["nonfinite"]
    assert facts["backward"]["arriving"] == 0.0


def test_a_custom_function_that_returns_nan_is_named(x) -> None:
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, h):
            return h.clone()

        @staticmethod
        def backward(ctx, g):
            return g * math.nan

    facts = read(Op(Broken.apply), lambda m: summed(m, x)).facts["nonfinite"]
    assert "BrokenBackward" in facts["backward"]["node"]


def test_a_padded_sample_in_multihead_attention_is_traced_to_its_softmax() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    h, pad = torch.randn(3, 5, 8), torch.zeros(3, 5, dtype=torch.bool)
    pad[1] = True

    def loss(m: nn.Module) -> Tensor:
        return m(h, h, h, key_padding_mask=pad, need_weights=True)[0][[0, 2]].square().mean()

    facts = read(attention, loss).facts["nonfinite"]
    assert facts["loss"] is False
    assert facts["gradients"]
    assert facts["forward"]["all_masked"]


def test_a_healthy_pass_is_not_run_again(x) -> None:
    model, calls = Op(lambda h: h.tanh()), []

    def loss(m: nn.Module) -> Tensor:
        calls.append(1)
        return summed(m, x)

    read(model, loss)
    assert len(calls) == 1


def test_a_model_without_loss_is_looked_at_through_its_outputs(x) -> None:
    facts = read(Op(lambda h: (h * 0).log()), None, x).facts["nonfinite"]
    assert facts["loss"] is None
    assert facts["forward"]["op"] == "log"


def test_logits_that_are_masked_on_purpose_are_healthy(x) -> None:
    facts = read(Op(lambda h: h.masked_fill(h > 0, -math.inf)), None, x).facts["nonfinite"]
    assert facts["forward"] == {}
    assert facts["gradients"] == []


def test_a_zero_row_through_normalize_multiplies_the_gradient(x) -> None:
    target = torch.randn(6, 4)
    model = Op(lambda h: F.normalize(h, dim=-1))
    (found,) = read(model, lambda m: F.mse_loss(m(x), target)).facts["singular"]
    assert found["op"] == "normalize"
    assert found["rows"] == [2]
    assert found["feeder"] == "layer"
    assert found["gain"] > 1e10


def test_a_zero_row_whose_gradient_is_masked_is_left_alone(x) -> None:
    target = torch.randn(6, 4)
    seen = torch.ones(6, 1)
    seen[2] = 0.0
    model = Op(lambda h: F.normalize(h, dim=-1))
    assert read(model, lambda m: ((m(x) - target) * seen).square().mean()).facts["singular"] == []


def test_a_mean_over_an_empty_mask_is_left_alone() -> None:
    h, seen = torch.randn(6, 5, 8), torch.ones(6, 5, 1)
    seen[2] = 0.0

    def pool(m: nn.Module) -> Tensor:
        return ((m(h) * seen).sum(1) / (seen.sum(1) + 1e-9)).square().add(1).log().mean()

    def lean(m: nn.Module) -> Tensor:
        return ((m(h) * seen).sum(1) / (seen.sum(1) + 1e-9)).mean()

    for loss in (pool, lean):
        assert read(nn.Linear(8, 4), loss).facts["singular"] == []


@pytest.mark.parametrize(("eps", "count"), [(1e-5, 0), (1e-12, 1)])
def test_a_constant_row_in_a_norm_with_a_tiny_eps_multiplies_the_gradient(eps, count, x) -> None:
    target = torch.randn(6, 4)
    model = Op(nn.LayerNorm(4, eps=eps))
    found = read(model, lambda m: F.mse_loss(m(x), target)).facts["singular"]
    assert len(found) == count


def test_the_model_is_left_as_it_was(x) -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Dropout(), Apply(torch.log))
    subject = trace(
        model, Setup(lambda m: summed(m, x), lambda m: summed(m, x), None, 0), rng_states()
    )
    before = {name: t.clone() for name, t in model.state_dict().items()}
    buffers = dict(model.named_buffers())
    state = torch.get_rng_state()
    assert first_nonfinite(subject).facts["nonfinite"]["forward"]["op"] == "log"
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(t is buffers[name] for name, t in model.named_buffers())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e6])
def test_the_scale_of_the_loss_moves_nothing(factor, x) -> None:
    target = torch.randn(6, 4)
    model = Op(lambda h: F.normalize(h, dim=-1))
    facts = read(model, lambda m: factor * F.mse_loss(m(x), target)).facts
    assert len(facts["singular"]) == 1
    assert facts["norm_overflow"] == []
