"""Gradients for given cotangents are torch's own, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from steadygrad.probe.gradients import gradients


def alike(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other is None or (
        one is not None and other is not None and torch.equal(one, other)
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.complex64])
def test_they_are_torchs_own_for_every_root(dtype: torch.dtype) -> None:
    x = torch.randn(3, 4, dtype=dtype, requires_grad=True)
    unused = torch.ones(2, requires_grad=True)
    hidden = x * torch.randn(4, dtype=dtype)
    roots = [hidden * hidden, hidden.mean(1), x.sum()]
    given = [torch.randn_like(one) for one in roots]
    wanted = [x, hidden, unused]
    expected = torch.autograd.grad(roots, wanted, given, retain_graph=True, allow_unused=True)
    found = gradients(roots, wanted, given)
    assert all(alike(a, b) for a, b in zip(found, expected, strict=True))
    assert found[2] is None


def test_a_wanted_root_gets_its_cotangent_also_where_it_is_broken() -> None:
    x = torch.randn(3, requires_grad=True)
    root = x / 0
    given = torch.tensor([1.0, 2.0, 3.0])
    with torch.no_grad():
        (found,) = gradients([root], [root], [given])
    assert found is not None
    assert torch.equal(found, given)


def test_the_graph_stays_alive_and_has_second_derivatives() -> None:
    x = torch.randn(5, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad((x**3).sum(), x, create_graph=True)
    vector = torch.randn(5, dtype=torch.float64)
    for _ in range(2):
        (found,) = gradients([slope], [x], [vector])
        assert found is not None
        torch.testing.assert_close(found, 6 * x.detach() * vector)


def test_hooks_below_see_what_they_would() -> None:
    seen: list[Tensor] = []
    layer = nn.Linear(2, 3)
    root = layer(torch.randn(4, 2))
    root.grad_fn.register_prehook(lambda grads: seen.extend(grads))
    given = torch.randn(4, 3)
    gradients([root], [layer.weight], [given])
    assert torch.equal(seen[0], given)
