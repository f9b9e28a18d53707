"""A broken step is computed again with one thing changed, and the finding says what that told."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import steadygrad as sg
from steadygrad._replay import told_by_variants
from steadygrad.core.finding import Finding, Severity
from steadygrad.replay.variants import MOST, Guilty, _bisected

pytestmark = pytest.mark.filterwarnings("ignore:steadygrad:RuntimeWarning")


class Directions(nn.Module):
    """Looks at the direction of a sample: a row of zeros has none."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x / x.square().sum(-1, keepdim=True).sqrt())


def _first(model: nn.Module, spoil: Callable[[Tensor], object], *, half: bool = False) -> Finding:
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    context = torch.autocast("cpu", torch.float16) if half else nullcontext()
    with sg.watch(model, optimizer) as run:
        for step in range(4):
            x = torch.randn(32, 8)
            y = x[:, :1] + 1
            if step == 2:
                spoil(x)
            optimizer.zero_grad()
            with context:
                loss = F.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
    return run.report().findings[0]


@pytest.mark.parametrize("rows", [[13], [0, 31], [7, 8, 9]])
def test_the_samples_that_break_a_step_alone_are_named(rows: list[int]) -> None:
    found = _first(Directions(), lambda x: x.index_fill_(0, torch.tensor(rows), 0.0))

    assert found.code == "G002"
    assert found.evidence["samples"] == ", ".join(map(str, rows))
    assert "of 32 does it alone" in found.says


def test_a_batch_that_breaks_throughout_has_no_guilty_samples() -> None:
    found = _first(Directions(), lambda x: x.zero_())

    assert found.code == "G002"
    assert "samples" not in found.evidence


def test_a_step_that_float32_heals_is_told_from_one_that_it_does_not() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
    with torch.no_grad():
        model[0].weight.mul_(1e6)
    large = _first(model, lambda x: None, half=True)
    singular = _first(Directions(), lambda x: x[3].zero_(), half=True)

    assert (large.code, large.evidence["in float32"]) == ("G007", "finite")
    assert (singular.code, singular.evidence["in float32"]) == ("G002", "not finite")
    assert any("half precision" in one for one in singular.ruled_out)


@pytest.mark.parametrize("bad", [{5}, {0, 63}, {1, 2, 40}, set(range(9))])
def test_bisection_asks_few_questions(bad: set[int]) -> None:
    asked = []

    def breaks(start: int, end: int) -> bool:
        asked.append(end - start)
        return any(start <= one < end for one in bad)

    found = _bisected(breaks, 0, 64)

    assert set(found) <= bad
    assert len(found) == min(len(bad), MOST + 1)
    assert len(asked) <= 2 * 6 * len(found)
    assert sum(asked) <= 64 * (2 + len(found))


def test_a_kernel_that_differs_from_the_formula_is_the_verdict() -> None:
    one = Finding(Severity.broken, "attention makes nan", code="G002")

    healed = told_by_variants(one, None, True, None)
    not_healed = told_by_variants(one, None, False, Guilty((1,), 4))

    assert "the fused kernel differs" in healed.says
    assert healed.try_next[0].remedy == "math-attention"
    assert any("kernel" in out for out in not_healed.ruled_out)
    assert "sample 1 of 4 does it alone" in not_healed.says
