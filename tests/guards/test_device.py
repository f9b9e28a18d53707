"""On a device nothing is read: the same decisions fall out of formulas on 0-d tensors.

The formulas run here on CPU tensors that the guard is told not to read; that nothing waits for a
real device is tested where there is one.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import steadygrad as sg

NAN = math.nan
POLICIES: dict[str, Callable[[], sg.Policy]] = {
    "norm": lambda: sg.clip_norm(0.5),
    "value": lambda: sg.clip_value(0.05),
    "agc": lambda: sg.clip_agc(0.05),
    "quantile": lambda: sg.clip_quantile(0.5, warmup=2),
    "zscore": lambda: sg.clip_zscore(warmup=3),
    "adagc": lambda: sg.clip_adagc(warmup=3),
    "outlier": lambda: sg.skip_outlier(window=8),
    "backoff": sg.lr_backoff,
}
TROUBLE = {3: NAN, 6: math.inf, 9: 100.0}


def batch(number: int) -> Tensor:
    return torch.randn(16, 8, generator=torch.Generator().manual_seed(number))


def trained(
    policy: sg.Policy, *, reads: bool, fused: bool, scaled: bool
) -> tuple[Tensor, list[sg.Event]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 1))
    optimizer = torch.optim.AdamW(model.parameters(), 0.01, fused=fused)
    handle = sg.guard(optimizer, sg.skip_nonfinite(), policy, model=model, strict=True)
    handle._attachment._reads = reads
    amp = torch.amp.GradScaler("cpu", init_scale=64.0, enabled=scaled)
    for number in range(14):
        optimizer.zero_grad()
        loss = (model(batch(number)) - 3).square().mean() * TROUBLE.get(number, 1.0)
        amp.scale(loss).backward()
        amp.step(optimizer)
        amp.update()
    tensors = [*model.parameters(), *model.buffers()]
    return torch.cat([one.detach().double().flatten() for one in tensors]), list(handle.history)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", POLICIES)
def test_a_device_decides_as_the_host_does(name: str, fused: bool, scaled: bool) -> None:
    one, events = trained(POLICIES[name](), reads=False, fused=fused, scaled=scaled)
    other, expected = trained(POLICIES[name](), reads=True, fused=fused, scaled=scaled)
    assert torch.isfinite(one).all()
    assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)
    assert [(e.skipped, e.clipped, e.by) for e in events] == [
        (e.skipped, e.clipped, e.by) for e in expected
    ]
    assert [e.suspects[0][0] for e in events if e.suspects] == [
        e.suspects[0][0] for e in expected if e.suspects
    ]
