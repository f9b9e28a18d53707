"""After a check everything is as before, bit for bit: model, optimizer, random generators."""

from __future__ import annotations

import contextlib
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import steadygrad as sg
from steadygrad.probe.tree import Tree
from steadygrad.testing import HEALTHY, PATIENTS, Case, Patient
from steadygrad.testing.case import Loss

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
)
RAISES_BY_ITSELF = {"labels-from-one", "label-minus-one"}


EVERYONE = PATIENTS + HEALTHY
OTHERS = [pytest.param(one, marks=pytest.mark.long) for one in (*EVERYONE[1::3], *EVERYONE[2::3])]


@pytest.mark.parametrize("patient", [*EVERYONE[::3], *OTHERS], ids=lambda one: one.name)
def test_nothing_has_changed(patient: Patient) -> None:
    case = patient.build()
    _give_half_of_the_parameters_a_gradient(case.model)
    before = _everything(case)
    _check(patient, case)
    assert _everything(case) == before


@pytest.mark.parametrize("patient", EVERYONE[::8], ids=lambda one: one.name)
def test_nothing_has_changed_after_an_exception(patient: Patient) -> None:
    case = patient.build()
    before = _everything(case)
    for loss in (_raises_at_once, _raises_after(case)):
        with pytest.raises(ZeroDivisionError):
            sg.check(case.model, case.inputs, loss=loss, optimizer=case.optimizer)
        assert _everything(case) == before


@pytest.mark.parametrize("patient", HEALTHY[::6], ids=lambda one: one.name)
def test_a_mixed_training_mode_is_kept(patient: Patient) -> None:
    case = patient.build()
    for module in list(case.model.modules())[1::2]:
        module.eval()
    before = _everything(case)
    sg.check(case.model, **case.arguments())
    assert _everything(case) == before


def test_a_model_that_cannot_be_copied_is_left_as_it_was() -> None:
    case = next(one for one in HEALTHY if one.name == "resnet-20").build()
    case.model.register_buffer("uncopyable", torch.ones(3, requires_grad=True) * 2)
    before = _everything(case)
    sg.check(case.model, **case.arguments())
    assert _everything(case) == before


def test_training_after_a_check_is_training_without_one() -> None:
    patient = next(one for one in HEALTHY if one.name == "dropout")
    checked, untouched = patient.build(), patient.build()
    sg.check(checked.model, **checked.arguments())
    assert _trained(checked) == _trained(untouched)


def _check(patient: Patient, case: Case) -> None:
    if patient.name not in RAISES_BY_ITSELF:
        sg.check(case.model, **case.arguments())
        return
    with contextlib.suppress(IndexError):
        sg.check(case.model, **case.arguments())


def _raises_at_once(model: nn.Module) -> Tensor:
    raise ZeroDivisionError


def _raises_after(case: Case) -> Loss:
    def loss(model: nn.Module) -> Tensor:
        inputs = case.inputs if isinstance(case.inputs, tuple) else (case.inputs,)
        model(*inputs)
        torch.rand(1), np.random.rand(), random.random()
        raise ZeroDivisionError

    return loss


def _give_half_of_the_parameters_a_gradient(model: nn.Module) -> None:
    for parameter in list(model.parameters())[::2]:
        parameter.grad = torch.full_like(parameter, 0.5)


def _everything(case: Case) -> dict[str, object]:
    """Return all that a check could disturb, as bytes and plain values that compare by ==."""
    model = case.model
    return {
        "parameters": {n: (id(p), _bits(p), p.requires_grad) for n, p in model.named_parameters()},
        "buffers": {name: (id(b), _bits(b)) for name, b in model.named_buffers()},
        "gradients": {name: _bits(p.grad) for name, p in model.named_parameters()},
        "modes": {name: one.training for name, one in model.named_modules()},
        "hooks": {n: [len(vars(one).get(h, ())) for h in HOOKS] for n, one in _modules(model)},
        "attributes": {name: sorted(vars(one)) for name, one in _modules(model)},
        "optimizer": _state(case),
        "inputs": [_bits(t) for t in _tensors(case.inputs)],
        "torch": _bits(torch.get_rng_state()),
        "numpy": repr(np.random.get_state()),
        "python": random.getstate(),
        "grad mode": torch.is_grad_enabled(),
    }


def _modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return list(model.named_modules())


def _state(case: Case) -> str:
    return "" if case.optimizer is None else repr(case.optimizer.state_dict())


def _tensors(inputs: Tree) -> list[Tensor]:
    return list(inputs) if isinstance(inputs, tuple) else [inputs]


def _bits(tensor: Tensor | None) -> bytes | None:
    """The tensor's bytes, so that NaN equals itself."""
    if tensor is None:
        return None
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def _trained(case: Case) -> list[bytes | None]:
    assert case.loss is not None
    assert case.optimizer is not None
    torch.manual_seed(0)
    for _ in range(3):
        case.optimizer.zero_grad()
        case.loss(case.model).backward()
        case.optimizer.step()
    return [_bits(p) for p in case.model.parameters()]
