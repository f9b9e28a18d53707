"""See what the loss reaches, and where a path that should lead to a parameter ends."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Adam, Optimizer
from torch.utils.checkpoint import checkpoint

from steadygrad._check import Setup, trace
from steadygrad.core.finding import Severity
from steadygrad.core.record import record_of
from steadygrad.detectors.wiring import no_gradient, not_in_optimizer
from steadygrad.probe.subject import Subject, rng_states
from steadygrad.probe.wiring import fresh, wiring

X, Y = torch.randn(16, 8), torch.arange(16) % 4
Loss = Callable[[nn.Module], Tensor]


def classify(model: nn.Module) -> Tensor:
    return functional.cross_entropy(model(X), Y)


def subject_of(
    model: nn.Module, loss: Loss | None = classify, optimizer: Optimizer | None = None
) -> Subject:
    forward = loss or (lambda m: m(X))
    return trace(model, Setup(forward, loss, optimizer, 0), rng_states())


def worst(
    model: nn.Module, loss: Loss | None = classify, optimizer: Optimizer | None = None
) -> Severity | None:
    readings = wiring(subject_of(model, loss, optimizer))
    record = record_of(readings.rows, readings.facts)
    found = [*no_gradient.run(record), *not_in_optimizer.run(record)]
    return max((one.severity for one in found), default=None)


class Two(nn.Module):
    """A body and a head with something between them."""

    def __init__(self, between: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        self.body, self.head, self.between = nn.Linear(8, 8), nn.Linear(8, 4), between

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self.body(x)))


def without_gradient(h: Tensor) -> Tensor:
    with torch.no_grad():
        return h * 2


CUTS = {
    "detach": lambda h: h.detach(),
    "data": lambda h: h.data,
    "argmax": lambda h: functional.one_hot(h.argmax(-1), 8).float(),
    "round": torch.round,
    "numpy": lambda h: torch.from_numpy(h.detach().numpy()),
    "no_grad": without_gradient,
    "tensor": lambda h: torch.tensor(h.tolist()),
}


@pytest.mark.parametrize("name", CUTS)
def test_a_cut_path_is_named(name: str) -> None:
    model = Two(CUTS[name])
    facts = wiring(subject_of(model)).facts["wiring"]
    assert [row["name"] for row in facts["unreached"]] == ["body.weight", "body.bias"]
    assert {row["why"] for row in facts["unreached"]} == {"cut"}


@pytest.mark.parametrize("name", CUTS)
def test_a_cut_that_the_optimizer_should_step_is_more_than_a_note(name: str) -> None:
    model = Two(CUTS[name])
    assert worst(model, optimizer=Adam(model.parameters())) >= Severity.risk


def test_the_line_of_the_cut_is_named() -> None:
    (first, _) = wiring(subject_of(Two(CUTS["detach"]))).facts["wiring"]["unreached"]
    assert first["op"] == "detach"
    assert "test_wiring.py" in first["at"]


def test_a_straight_path_needs_no_word() -> None:
    model = Two()
    assert worst(model, optimizer=Adam(model.parameters())) is None


def test_a_straight_through_estimator_is_a_path() -> None:
    model = Two(lambda h: h + (h.round() - h).detach())
    assert worst(model, optimizer=Adam(model.parameters())) is None


class Side(Two):
    """Has a head that nobody calls, one that nobody reads, and a parameter that nobody uses."""

    def __init__(self) -> None:
        super().__init__()
        self.never, self.unread = nn.Linear(8, 2), nn.Linear(8, 2)
        self.spare = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        self.unread(x)
        return super().forward(x)


def test_what_is_unused_is_a_note() -> None:
    model = Side()
    assert worst(model, optimizer=Adam(model.parameters())) is Severity.note
    why = {
        row["module"]: row["why"] for row in wiring(subject_of(model)).facts["wiring"]["unreached"]
    }
    assert why == {"": "unused", "never": "uncalled", "unread": "unused"}


class Checkpointed(nn.Module):
    """Recomputes its middle layer in the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.body, self.middle, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.middle, self.body(x), use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_hides_nothing(reentrant: bool) -> None:
    model = Checkpointed(reentrant)
    assert worst(model, optimizer=Adam(model.parameters())) is None


class Listed(nn.Module):
    """Layers in a container of some kind."""

    def __init__(self, kind: Callable[[list[nn.Module]], object]) -> None:
        super().__init__()
        self.layers, self.head = kind([nn.Linear(8, 8), nn.Linear(8, 8)]), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        layers = self.layers.values() if isinstance(self.layers, dict) else self.layers
        for layer in layers:
            x = torch.relu(layer(x))
        return self.head(x)


def test_layers_in_a_list_are_not_registered() -> None:
    model = Listed(list)
    assert worst(model, optimizer=Adam(model.parameters())) is Severity.broken
    rows = wiring(subject_of(model)).facts["wiring"]["unregistered"]
    assert {row["name"].rpartition(".")[0] for row in rows} == {"layers.0", "layers.1"}


def test_layers_in_a_dict_are_not_registered() -> None:
    model = Listed(lambda layers: dict(zip("ab", layers, strict=True)))
    assert worst(model, optimizer=Adam(model.parameters())) is Severity.broken


def test_layers_in_a_list_that_the_optimizer_knows_are_fine() -> None:
    model = Listed(list)
    extra = [one for layer in model.layers for one in layer.parameters()]
    assert worst(model, optimizer=Adam([*model.parameters(), *extra])) is None


def test_a_list_of_registered_layers_is_fine() -> None:
    model = Listed(nn.ModuleList)
    model.again = list(model.layers)
    assert worst(model, optimizer=Adam(model.parameters())) is None


def test_a_frozen_teacher_in_a_list_is_fine() -> None:
    model, teacher = Two(), Two().requires_grad_(False)
    model.teacher = [teacher]
    loss = lambda m: functional.mse_loss(m(X), m.teacher[0](X))  # noqa: E731
    assert worst(model, loss, Adam(model.parameters())) is None


def test_nothing_trainable_is_broken() -> None:
    assert worst(Two().requires_grad_(False)) is Severity.broken


def test_a_loss_made_of_a_number_is_broken() -> None:
    loss = lambda m: torch.tensor(classify(m).item(), requires_grad=True)  # noqa: E731
    assert worst(Two(), loss) is Severity.broken


def test_tied_weights_are_fine() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 4))
    model[2].weight = model[0].weight
    assert worst(model, optimizer=Adam(model.parameters())) is None


class Pair(nn.Module):
    """A generator and its judge."""

    def __init__(self) -> None:
        super().__init__()
        self.make = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        self.judge = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))


def test_neither_turn_of_a_gan_is_more_than_a_note() -> None:
    model = Pair()
    judged = lambda m: m.judge(m.make(X).detach()).mean()  # noqa: E731
    made = lambda m: m.judge(m.make(X)).mean()  # noqa: E731
    assert worst(model, judged, Adam(model.judge.parameters())) is Severity.note
    assert worst(model, made, Adam(model.make.parameters())) is Severity.note
    assert worst(model, judged) is Severity.note


class Taught(nn.Module):
    """A student and its averaged teacher, both trainable by mistake of nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.student, self.teacher = Two(), Two()

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            goal = self.teacher(x)
        return self.student(x) - goal


def test_a_teacher_without_gradient_is_a_note() -> None:
    model = Taught()
    assert worst(model, optimizer=Adam(model.parameters())) is Severity.note


def test_the_parameters_of_a_loss_are_known_to_the_optimizer() -> None:
    model, centers = Two(), nn.Linear(4, 4)
    loss = lambda m: functional.cross_entropy(centers(m(X)), Y)  # noqa: E731
    both = Adam([*model.parameters(), *centers.parameters()])
    assert worst(model, loss, both) is None
    assert worst(model, loss, Adam(model.parameters())) is Severity.note


def test_an_optimizer_made_before_the_head_was_replaced_is_broken() -> None:
    model = Two()
    optimizer = Adam(model.parameters())
    model.head = nn.Linear(8, 4)
    assert worst(model, optimizer=optimizer) is Severity.broken


def test_an_optimizer_of_another_model_is_broken() -> None:
    assert worst(Two(), optimizer=Adam(Two().parameters())) is Severity.broken


def test_weights_without_their_biases_are_a_risk() -> None:
    model = Two()
    weights = [one for one in model.parameters() if one.dim() > 1]
    assert worst(model, optimizer=Adam(weights)) is Severity.risk


def test_a_head_on_a_trained_trunk_is_a_note_and_on_a_new_one_a_risk() -> None:
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 4))
    head = list(model[3].parameters())
    assert worst(model, optimizer=Adam(head)) is Severity.risk
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.pow_(3)  # heavy tails, as of trained weights
    assert worst(model, optimizer=Adam(head)) is Severity.note


def test_new_weights_are_told_from_trained_ones() -> None:
    weight = torch.randn(64, 64)
    assert fresh(weight)
    assert fresh(torch.rand(64, 64) - 0.5)
    assert not fresh(weight**3)


def test_the_gradients_of_model_and_loss_stay_as_they_were() -> None:
    model, centers = Two(CUTS["detach"]), nn.Linear(4, 4)
    for one in (*model.parameters(), *centers.parameters()):
        one.grad = torch.ones_like(one)
    wiring(subject_of(model, lambda m: centers(m(X)).sum()))
    assert all(bool((one.grad == 1).all()) for one in (*model.parameters(), *centers.parameters()))


def test_the_random_generator_and_the_hooks_stay_as_they_were() -> None:
    model = Two(lambda h: functional.dropout(h).detach())
    subject = subject_of(model)
    before = torch.get_rng_state()
    wiring(subject)
    assert torch.equal(before, torch.get_rng_state())
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in model.modules())
