"""A guarded run is the run that clips by hand; and where nothing binds, the unguarded one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn, optim
from torch.optim import Optimizer

import steadygrad as sg

MAX_NORM = 0.1
Make = Callable[[list[nn.Parameter]], Optimizer]


def made(kind: type[Optimizer], **settings: Any) -> Make:
    return lambda parameters: kind(parameters, lr=0.01, **settings)


OPTIMIZERS: dict[str, Make] = {
    "sgd-fused": made(optim.SGD, fused=True),
    "sgd-foreach": made(optim.SGD, foreach=True),
    "sgd-loop": made(optim.SGD, foreach=False),
    "momentum-fused": made(optim.SGD, momentum=0.9, fused=True),
    "momentum-foreach": made(optim.SGD, momentum=0.9, foreach=True),
    "momentum-loop": made(optim.SGD, momentum=0.9, foreach=False),
    "dampened-fused": made(optim.SGD, momentum=0.9, dampening=0.5, fused=True),
    "adam-fused": made(optim.Adam, fused=True),
    "adam-foreach": made(optim.Adam, foreach=True),
    "adam-loop": made(optim.Adam, foreach=False),
    "adamw-fused": made(optim.AdamW, fused=True),
    "adamw-foreach": made(optim.AdamW, foreach=True),
    "adamw-loop": made(optim.AdamW, foreach=False),
    "adagrad-fused": made(optim.Adagrad, fused=True),
    "adagrad-foreach": made(optim.Adagrad, foreach=True),
    "adagrad-loop": made(optim.Adagrad, foreach=False),
    "rmsprop-foreach": made(optim.RMSprop, foreach=True),
    "rmsprop-loop": made(optim.RMSprop, foreach=False),
    "nadam-foreach": made(optim.NAdam, foreach=True),
    "nadam-loop": made(optim.NAdam, foreach=False),
}
if muon := getattr(optim, "Muon", None):  # torch >= 2.9; matrices only
    OPTIMIZERS["muon"] = lambda ps: muon([one for one in ps if one.dim() == 2], lr=0.01)
SCALERS = ("none", "scaled", "unscaled")
TROUBLE = {"clean": (), "nan-3-7": (3, 7), "nan-0": (0,)}
# Official GradScaler and fused SGD read momentum that nobody wrote to after a skipped first step
# (torch 2.13), so that there is nothing to be equal to.
BROKEN_IN_TORCH = {("momentum-fused", "nan-0"), ("dampened-fused", "nan-0")}


@pytest.mark.parametrize("trouble", TROUBLE)
@pytest.mark.parametrize("scaler", SCALERS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_guarded_run_is_one_that_clips_and_skips_by_hand(
    optimizer: str, scaler: str, trouble: str
) -> None:
    guarded = trained(OPTIMIZERS[optimizer], scaler, TROUBLE[trouble], guard=True)
    reference = "none" if (optimizer, trouble) in BROKEN_IN_TORCH else scaler
    by_hand = trained(OPTIMIZERS[optimizer], reference, TROUBLE[trouble], guard=False)
    size = float(by_hand.norm())
    # dividing by a number and multiplying by its reciprocal differ in the last bit, 6e-8; 10 steps
    assert float((guarded - by_hand).norm()) <= 1e-6 * size


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_where_nothing_binds_the_run_is_the_unguarded_one_bit_by_bit(optimizer: str) -> None:
    one = trained(OPTIMIZERS[optimizer], "none", (), guard=True, max_norm=1e9)
    other = trained(OPTIMIZERS[optimizer], "none", (), guard=False, max_norm=None)
    assert torch.equal(one, other)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))


def trained(
    make: Make,
    scaler: str,
    trouble: tuple[int, ...],
    *,
    guard: bool,
    max_norm: float | None = MAX_NORM,
) -> Tensor:
    """All parameters after ten steps [elements]; a NaN is put into a gradient at some of them."""
    model = network()
    optimizer = make(list(model.parameters()))
    if guard and max_norm is not None:
        sg.guard(optimizer, sg.skip_nonfinite(), sg.clip_norm(max_norm), model=model, strict=True)
    amp = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaler != "none")
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    for step in range(10):
        optimizer.zero_grad()
        loss = (model(x) - 3 * x[:, :1]).square().mean()
        amp.scale(loss).backward()
        if step in trouble:
            model[0].weight.grad[0, 0] = math.nan
        by_hand = not guard and max_norm is not None
        if scaler == "unscaled" or (by_hand and scaler != "none"):
            amp.unscale_(optimizer)
        if by_hand:
            assert max_norm is not None
            stepped = [one for group in optimizer.param_groups for one in group["params"]]
            norm = nn.utils.clip_grad_norm_(stepped, max_norm)
            if scaler == "none" and not norm.isfinite():
                continue
        amp.step(optimizer)
        amp.update()
    return torch.cat([one.detach().flatten() for one in model.parameters()])


# --- Whatever the gradients ----------------------------------------------------------------------


@settings(max_examples=100)
@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=5),
    size=st.floats(-30, 15),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.complex64]),
    fused=st.booleans(),
)
def test_the_norm_and_the_clipped_gradients_are_those_of_float64(
    shapes: list[list[int]], size: float, dtype: torch.dtype, fused: bool
) -> None:
    draw = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in shapes]
    for one in parameters:
        drawn = torch.randn(one.shape, generator=draw, dtype=torch.float64)
        one.grad = (drawn * 10**size).to(dtype)
    exact = math.sqrt(sum(float(one.grad.abs().double().square().sum()) for one in parameters))
    optimizer = torch.optim.SGD(parameters, 1.0, fused=fused and not dtype.is_complex)
    handle = sg.guard(optimizer, sg.clip_norm(1e-3), strict=True)
    optimizer.step()
    event = handle.history[0]
    # float32 sums of at most 500 squares are good to 1e-6; below 1e-19 their squares underflow
    assert event.norm == pytest.approx(exact, rel=1e-5, abs=1e-19)
    moved = math.sqrt(sum(float(one.detach().abs().double().square().sum()) for one in parameters))
    # bfloat16 rounds the divisor and the quotient, to 2^-8 each
    limit = 1.01e-3 if dtype is torch.bfloat16 else 1.0001e-3
    assert moved <= limit


@pytest.mark.parametrize("fused", [True, False])
def test_finite_gradients_beyond_float32_are_clipped_and_not_skipped(fused: bool) -> None:
    one = nn.Parameter(torch.zeros(4))
    one.grad = torch.tensor([3e19, 0.0, 4e19, 0.0])
    optimizer = torch.optim.SGD([one], 1.0, fused=fused)
    handle = sg.guard(optimizer, sg.skip_nonfinite(), sg.clip_norm(1.0), strict=True)
    optimizer.step()
    assert handle.history[0].overflowed
    assert handle.history[0].norm == pytest.approx(5e19)
    assert one.detach().tolist() == pytest.approx([-0.6, 0.0, -0.8, 0.0])


def test_half_gradients_are_summed_in_float32() -> None:
    one = nn.Parameter(torch.zeros(10_000, dtype=torch.float16))
    one.grad = torch.full((10_000,), 3000.0, dtype=torch.float16)
    optimizer = torch.optim.SGD([one], 0.0)
    handle = sg.guard(optimizer, sg.skip_nonfinite(), strict=True)
    optimizer.step()
    assert handle.history[0].norm == pytest.approx(3e5, rel=1e-3)
    assert not handle.history[0].skipped
