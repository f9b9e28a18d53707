"""What happens in a sandbox stays there: in a copy, or else everything is put back."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import steadygrad as sg
from steadygrad.probe.sandbox import sandbox, unwarned


class Untidy(nn.Module):
    """Change on each forward pass whatever a module can change, and draw from every generator."""

    calls: int
    fails: bool

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("count", torch.zeros(3))
        self.register_buffer("replaced", torch.zeros(3))
        self.calls, self.fails = 0, False
        self.history: list[float] = []
        self.cache: dict[str, Tensor] = {}
        self.hidden = torch.zeros(4)
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.count += 1
        self.replaced = self.replaced + 1
        self.history.append(random.random())
        self.hidden += float(np.random.rand())
        with torch.no_grad():
            self.layer.weight.clamp_(-0.01, 0.01)
        out: Tensor = self.drop(self.norm(self.layer(x)))
        self.last, self.fresh = out, out
        self.cache["out"] = out
        self.train(not self.training)
        self.drop.register_forward_hook(lambda *_: None)
        self.layer.bias.requires_grad_(False)
        if self.fails:
            raise ZeroDivisionError
        return out


class Uncopyable(Untidy):
    """As untidy, and it refuses to be copied."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Uncopyable:
        raise RuntimeError("no copies of me")


def with_graph() -> Untidy:
    """Hold, in an object of the user's, a tensor with a graph, which torch does not copy."""
    model = Untidy()
    model.kept = SimpleNamespace(state=torch.ones(2, requires_grad=True) * 2)
    return model


BUILDS: dict[str, Callable[[], Untidy]] = {
    "copied": Untidy,
    "refuses to be copied": Uncopyable,
    "holds a graph": with_graph,
}


def prepared(build: Callable[[], Untidy]) -> Untidy:
    torch.manual_seed(0)
    model = build()
    model.norm.eval()
    model.layer.weight.grad = torch.full((4, 4), 0.5)
    model.layer.register_forward_hook(lambda *_: None)
    model.history.append(3.0)
    return model


def everything(model: Untidy) -> dict[str, Any]:
    """Return all that a forward pass could disturb, as bytes, identities, and plain values."""
    named = dict(model.named_modules())
    return {
        "parameters": {n: (id(p), bits(p), p.requires_grad) for n, p in model.named_parameters()},
        "buffers": {n: (id(b), bits(b)) for n, b in model.named_buffers()},
        "gradients": {n: (id(p.grad), bits(p.grad)) for n, p in model.named_parameters()},
        "modes": {n: m.training for n, m in named.items()},
        "hooks": {n: [*m._forward_hooks, *m._forward_pre_hooks] for n, m in named.items()},
        "attributes": {n: {a: id(v) for a, v in vars(m).items()} for n, m in named.items()},
        "values": (model.calls, list(model.history), dict(model.cache), bits(model.hidden)),
        "generators": (bits(torch.get_rng_state()), repr(np.random.get_state()), random.getstate()),
    }


def bits(tensor: Tensor | None) -> bytes | None:
    return None if tensor is None else tensor.detach().contiguous().numpy().tobytes()


@pytest.mark.parametrize("name", BUILDS)
def test_a_check_leaves_no_trace(name: str) -> None:
    model = prepared(BUILDS[name])
    before = everything(model)
    report = sg.check(model, torch.randn(8, 4, generator=torch.Generator().manual_seed(0)))
    assert report.clear
    assert everything(model) == before


@pytest.mark.parametrize("name", BUILDS)
def test_a_check_leaves_no_trace_when_the_forward_pass_raises(name: str) -> None:
    model = prepared(BUILDS[name])
    model.fails = True
    before = everything(model)
    with pytest.raises(ZeroDivisionError):
        sg.check(model, torch.ones(8, 4))
    assert everything(model) == before


@pytest.mark.parametrize("name", BUILDS)
def test_the_given_model_is_used_only_where_it_cannot_be_copied(name: str) -> None:
    model = prepared(BUILDS[name])
    with sandbox(model, None) as (copied, _):
        assert (copied is model) is (name != "copied")


@pytest.mark.parametrize("weights", [True, False], ids=["weights fit", "weights do not fit"])
def test_a_model_whose_copy_would_not_fit_is_used_in_place(weights: bool) -> None:
    model = prepared(Untidy)
    before = everything(model)
    with sandbox(model, None, largest_share=0.4 if weights else 0.0) as (copied, _):
        assert (copied is model) is not weights
        copied.count += 1
        copied.train()
    assert everything(model) == before


def test_in_place_the_gradients_are_out_of_the_way() -> None:
    model = prepared(Uncopyable)
    with sandbox(model, None) as (same, _):
        assert all(p.grad is None for p in same.parameters())
    assert model.layer.weight.grad is not None


def test_a_copy_shares_no_result_that_the_model_keeps() -> None:
    model = Untidy()
    model.hidden = torch.zeros(4, requires_grad=True) * 2
    sg.check(model, torch.randn(8, 4))
    assert not model.hidden.any()


@pytest.mark.parametrize("name", BUILDS)
def test_a_backward_pass_that_the_user_has_still_to_run_works(name: str) -> None:
    model = BUILDS[name]()
    loss = (model.layer(torch.ones(2, 4, requires_grad=True)) ** 2).sum()
    model.forward = lambda x: model.layer(x)  # type: ignore[method-assign] # a tidy one
    sg.check(model, torch.randn(8, 4))
    loss.backward()
    assert model.layer.weight.grad is not None


def test_a_copied_optimizer_holds_the_copied_parameters() -> None:
    model = nn.Linear(4, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    with sandbox(model, optimizer) as (copied, its):
        assert its is not None
        assert {id(p) for g in its.param_groups for p in g["params"]} == {
            id(p) for p in copied.parameters()
        }
    assert optimizer.param_groups[0]["params"][0] is model.weight


def test_a_lazy_model_stays_uninitialised() -> None:
    model = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(2))
    report = sg.check(model, torch.randn(4, 3))
    assert report.clear
    assert all(nn.parameter.is_lazy(p) for p in model.parameters())


def test_a_number_drawn_after_a_check_is_the_one_drawn_without() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    torch.manual_seed(3)
    plain = copy.deepcopy(model)(torch.ones(2, 4))
    torch.manual_seed(3)
    sg.check(model, torch.ones(2, 4))
    assert torch.equal(model(torch.ones(2, 4)), plain)


def test_what_a_script_has_been_warned_of_is_not_shown_to_it_again() -> None:
    def warn() -> None:
        warnings.warn("said once", UserWarning, stacklevel=1)

    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("default")
        before = list(warnings.filters)
        warn()
        with unwarned():
            warn()
        warn()
        assert list(warnings.filters) == before
    assert len(shown) == 1
