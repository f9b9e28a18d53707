"""A watched training is the unwatched one, bit by bit; and what is read of it is right."""

from __future__ import annotations

import copy
import io
import math
import pickle
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

import steadygrad as sg
from steadygrad.taps.watcher import Watcher

STEPS = 25


class Functional(nn.Module):
    """Activations as functions, dropout, and a buffer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, 24), nn.Linear(24, 4)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return self.b(F.dropout(torch.tanh(F.relu(self.a(x))), 0.3, self.training))


class Attending(nn.Module):
    """Attention, residuals, and an operation in place."""

    def __init__(self) -> None:
        super().__init__()
        self.inward = nn.Linear(12, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.out = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inward(x).unsqueeze(1).repeat(1, 3, 1)
        y = y + self.layer(y)
        y += 1
        return self.out(y.mean(1))


class Checkpointed(nn.Module):
    """A part is computed a second time in the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.a = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Dropout(0.2))
        self.b = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        from torch.utils.checkpoint import checkpoint

        x = x.requires_grad_() if self.reentrant else x
        return self.b(checkpoint(self.a, x, use_reentrant=self.reentrant))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 3, 4)),
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(96, 4),
    )


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.cell(x.view(-1, 3, 4))[0][:, -1])


@dataclass(frozen=True)
class Training:
    """A model, its optimizer, and how its loop looks."""

    make: Callable[[], nn.Module]
    optimizer: Callable[[Any], torch.optim.Optimizer]
    clip: float = 0.0
    scaler: bool = False
    accumulate: int = 1
    closure: bool = False


def _adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2)


TRAININGS = {
    "mlp": Training(lambda: nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 4)), _adam),
    "clipped": Training(Functional, _adam, clip=0.5),
    "functional": Training(Functional, lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)),
    "attention": Training(Attending, _adam, clip=1.0),
    "convolution": Training(convolutional, lambda p: torch.optim.RMSprop(p, 1e-3)),
    "recurrent": Training(Recurrent, _adam, clip=0.1),
    "reentrant": Training(lambda: Checkpointed(reentrant=True), _adam),
    "checkpointed": Training(lambda: Checkpointed(reentrant=False), _adam, clip=1.0),
    "scaled": Training(Functional, _adam, clip=0.5, scaler=True),
    "accumulated": Training(convolutional, _adam, clip=0.5, accumulate=3),
    "closure": Training(Functional, _adam, closure=True),
    "fused": Training(Functional, lambda p: torch.optim.AdamW(p, 1e-2, fused=True), scaler=True),
    "lbfgs": Training(Functional, lambda p: torch.optim.LBFGS(p, 0.1, max_iter=3), closure=True),
    "norm-first": Training(
        lambda: nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 24), nn.Sigmoid(), nn.Linear(24, 4)),
        lambda p: torch.optim.NAdam(p, 1e-2),
    ),
}


@pytest.mark.parametrize("name", TRAININGS)
@pytest.mark.parametrize("given", ["told", "found", "written"])
def test_training_is_bit_identical(name: str, given: str, tmp_path: Any) -> None:
    bare = _trained(TRAININGS[name])

    def watched(model: nn.Module, optimizer: torch.optim.Optimizer) -> sg.Watch:
        if given == "found":
            return sg.watch()
        return sg.watch(model, optimizer, run=tmp_path / "run" if given == "written" else None)

    seen = _trained(TRAININGS[name], watched)

    assert bare == seen


@pytest.mark.parametrize("name", TRAININGS)
def test_norms_are_those_of_the_gradients(name: str) -> None:
    training = TRAININGS[name]
    if name == "lbfgs":
        return
    norms: list[list[float]] = []
    watches: list[sg.Watch] = []

    def watched(model: nn.Module, optimizer: torch.optim.Optimizer) -> sg.Watch:
        watches.append(sg.watch(model, optimizer))
        return watches[0]

    _trained(training, watched, norms)

    record = watches[0].record
    mine = record.series("grad", "weight")
    np.testing.assert_allclose(mine, np.array(norms), rtol=1e-5)
    total = np.sqrt(np.square(np.array(norms)).sum(1))
    np.testing.assert_allclose(record.series("norm", "step")[:, 0], total, rtol=1e-5)
    after = record.series("norm_after", "step")[:, 0]
    limit = training.clip or math.inf
    np.testing.assert_allclose(after, np.minimum(total, limit), rtol=1e-4)


def _trained(  # noqa: C901 - a loop with everything that loops have
    training: Training,
    watched: Callable[[nn.Module, torch.optim.Optimizer], sg.Watch] | None = None,
    norms: list[list[float]] | None = None,
) -> bytes:
    """Train, and return everything that training leaves behind."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    model = training.make()
    optimizer = training.optimizer(model.parameters())
    scaler = torch.amp.GradScaler("cpu", enabled=training.scaler, init_scale=2.0**10)
    losses = []

    def loss_of(part: int) -> Tensor:
        x = torch.randn(8, 12) + part * random.random() * 0.1 + float(np.random.rand()) * 0.1
        return F.cross_entropy(model(x), torch.randint(4, (8,))) / training.accumulate

    def gradients() -> Tensor:
        optimizer.zero_grad()
        for part in range(training.accumulate):
            loss = loss_of(part)
            scaler.scale(loss).backward()
            losses.append(loss.item())
        if training.clip or (norms is not None and not training.closure):
            scaler.unscale_(optimizer)
        if norms is not None:
            norms.append([float(p.grad.norm()) for p in model.parameters() if p.grad is not None])
        if training.clip:
            nn.utils.clip_grad_norm_(model.parameters(), training.clip)
        return loss

    watch = None if watched is None else watched(model, optimizer)
    for _ in range(STEPS):
        if training.closure:
            optimizer.step(gradients)
        else:
            gradients()
            scaler.step(optimizer)
            scaler.update()
    if watch is not None:
        watch.close()
    return _bytes(model, optimizer, losses)


def _bytes(model: nn.Module, optimizer: torch.optim.Optimizer, losses: list[float]) -> bytes:
    state = [model.state_dict(), optimizer.state_dict(), losses, torch.get_rng_state()]
    state += [random.getstate(), np.random.get_state()]
    state += [[p.grad for p in model.parameters()], [m.training for m in model.modules()]]
    held = io.BytesIO()
    pickle.dump(_plain(state), held)
    return held.getvalue()


def _plain(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return tree.detach().numpy().tobytes()
    if isinstance(tree, dict):
        return {str(key): _plain(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_plain(one) for one in tree]
    return tree.tobytes() if isinstance(tree, np.ndarray) else tree


@pytest.fixture
def trained() -> Iterator[tuple[nn.Module, torch.optim.Optimizer, sg.Watch]]:
    torch.manual_seed(0)
    model = Functional()
    optimizer = _adam(model.parameters())
    watch = sg.watch(model, optimizer)
    for _ in range(4):
        _step(model, optimizer)
    yield model, optimizer, watch
    watch.close()


def _step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    F.cross_entropy(model(torch.randn(8, 12)), torch.randint(4, (8,))).backward()
    optimizer.step()


def test_a_watched_model_is_copied_and_saved(
    trained: tuple[nn.Module, torch.optim.Optimizer, sg.Watch],
) -> None:
    model, optimizer, _ = trained
    held = io.BytesIO()

    torch.save(model, held)
    torch.save(optimizer, held)
    pickle.dumps(model)
    copied = copy.deepcopy(model)

    for module in (*model.modules(), *copied.modules()):
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks
    assert not any(p._backward_hooks for p in model.parameters())


def test_nothing_of_ours_is_left_behind() -> None:
    before = _replaced()

    watch = sg.watch()
    with pytest.raises(RuntimeError, match="the user's"):
        _raise_inside(watch)

    assert _replaced() == before
    assert watch.record.facts["run"]["ended"] == "RuntimeError: the user's"
    assert len(watch.record.steps) == 1


def _raise_inside(watch: sg.Watch) -> None:
    with watch:
        model = Functional()
        _step(model, _adam(model.parameters()))
        raise RuntimeError("the user's")


def _replaced() -> list[Any]:
    scaler, clip = torch.amp.GradScaler, torch.nn.utils.clip_grad
    return [
        nn.Module.__call__,
        vars(torch.autograd.Function)["apply"],
        torch.autograd.backward,
        clip._get_total_norm,
        clip._clip_grads_with_norm_,
        torch.nn.utils.get_total_norm,
        (scaler.scale, scaler.step, scaler.unscale_),
        torch.optim.Optimizer.zero_grad,
        nn.Module.zero_grad,
        len(_global_optimizer_pre_hooks),
        len(_global_optimizer_post_hooks),
        torch._C._len_torch_function_stack(),
    ]


@pytest.mark.parametrize("part", ["_scalars", "_read_norms", "_survey"])
def test_a_fault_of_ours_ends_the_watch_and_not_the_training(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare, before = _trained(TRAININGS["clipped"]), _replaced()

    def fails(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(Watcher, part, fails)
    with pytest.warns(RuntimeWarning, match="by a fault of ours: ZeroDivisionError") as said:
        seen = _trained(TRAININGS["clipped"], sg.watch)

    assert bare == seen
    assert len(said) == 1
    assert _replaced() == before


def test_two_watches_end_in_any_order() -> None:
    before = _replaced()
    model = Functional()
    optimizer = _adam(model.parameters())

    first, second = sg.watch(model, optimizer), sg.watch(model, optimizer)
    _step(model, optimizer)
    first.close()
    _step(model, optimizer)
    second.close()
    _step(model, optimizer)

    assert len(first.record.steps) == 1
    assert len(second.record.steps) == 2
    assert _replaced() == before
