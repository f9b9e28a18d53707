"""The contract that every policy of a guard keeps, whoever wrote it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from steadygrad._guard import Handle, guard
from steadygrad.guards.gradients import Gradients
from steadygrad.guards.policies.nonfinite import skip_nonfinite
from steadygrad.guards.policy import Attached, Event, Policy, Surroundings

CLEAN = 200
SPIKE = 1e3  # what the loss of a bad step is multiplied by


def check_policy(make: Callable[[], Policy], *, clips: bool = True) -> None:
    """Assert that policies made by `make` keep the contract; AssertionError says which clause.

    A policy has a name; deciding changes no gradient; its state restored makes the same decisions;
    and after 200 clean steps, a NaN, an infinity, and (with `clips`) a spike of 1000 times, all
    behind `skip_nonfinite`, the next 200 steps still train. With `clips` a further spike is still
    clipped or skipped.
    """
    policy = make()
    assert policy.name, "a policy has a name"
    _check_deciding_changes_nothing(_attached(policy))
    run = Run(make())
    run.through(CLEAN)
    before = run.loss()
    for factor in (math.nan, math.inf, *([SPIKE] if clips else [])):
        run.step(factor)
    run.through(CLEAN)
    after = run.loss()
    assert math.isfinite(after), f"{policy.name}: parameters are not finite after a NaN"
    assert after < before, f"{policy.name}: the loss stands at {after:.3g} after a NaN"
    _check_state(make, run)
    if clips:
        usual = run.handle.history[-1].norm
        run.step(SPIKE)
        last = run.handle.history[-1]
        tamed = last.skipped or last.norm_after < 30 * usual
        assert tamed, f"{policy.name}: a spike passed after a NaN: {last}"


class Run:
    """A small regression with noisy batches, guarded."""

    def __init__(self, policy: Policy, seed: int = 0) -> None:
        self._draw = torch.Generator().manual_seed(seed)
        self._batch = torch.Generator().manual_seed(seed + 1)
        self.model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
        with torch.no_grad():
            for one in self.model.parameters():
                one.copy_(torch.randn(one.shape, generator=self._draw) / one.shape[-1] ** 0.5)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.003)
        self.handle: Handle = guard(self.optimizer, skip_nonfinite(), policy, strict=True)
        self._held = self._inputs(256)

    def through(self, steps: int) -> None:
        """Make some clean steps."""
        for _ in range(steps):
            self.step()

    def step(self, factor: float = 1.0) -> None:
        """Make a step on a loss times a factor."""
        self.optimizer.zero_grad()
        (self._loss(self._inputs(32)) * factor).backward()
        self.optimizer.step()

    def loss(self) -> float:
        """The loss on held-out inputs."""
        with torch.no_grad():
            return float(self._loss(self._held))

    def _inputs(self, count: int) -> Tensor:
        return torch.randn(count, 4, generator=self._batch)

    def _loss(self, inputs: Tensor) -> Tensor:
        target = inputs.prod(1, keepdim=True).sin() + inputs[:, :1]
        loss: Tensor = (self.model(inputs) - target).square().mean()
        return loss


def _attached(policy: Policy) -> Policy:
    if isinstance(policy, Attached):
        policy.attach(Surroundings(torch.optim.SGD([nn.Parameter(torch.ones(3))])))
    return policy


def _gradients(norms: Tensor) -> Gradients:
    parameters = [nn.Parameter(torch.ones(3)) for _ in norms]
    for one, norm in zip(parameters, norms.tolist(), strict=True):
        one.grad = torch.full((3,), norm / 3**0.5)
    total = float(norms.norm())
    names = [f"{place}.weight" for place in range(len(norms))]
    return Gradients(names, parameters, norms, total, math.isfinite(total))


def _check_deciding_changes_nothing(policy: Policy) -> None:
    for _, shown in _sequence():
        before = [one.grad.clone() for one in shown.parameters if one.grad is not None]
        policy.decide(shown)
        after = [one.grad for one in shown.parameters if one.grad is not None]
        same = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert same, f"{policy.name}: decide() changed a gradient; that is what rewrite is for"


def _sequence(steps: int = 300) -> Iterator[tuple[Event, Gradients]]:
    draw = torch.Generator().manual_seed(0)
    for step in range(steps):
        norms = torch.rand(3, generator=draw, dtype=torch.float64) + 0.5
        norm = float(norms.norm())
        yield Event(step, norm, norm, norms=norms.numpy()), _gradients(norms)


def _check_state(make: Callable[[], Policy], run: Run) -> None:
    """A policy that takes up another's state decides as it would have."""
    mine = run.handle.policies[-1]
    copied = _attached(make())
    copied.load_state_dict(mine.state_dict())
    for scale in (0.5, 1.0, 30.0):
        shown = _gradients(torch.full((4,), scale * run.handle.history[-1].norm).double())
        one, other = mine.decide(shown), copied.decide(shown)
        alike = (one.divide, one.skip, one.lr) == (other.divide, other.skip, other.lr)
        assert alike, f"{mine.name}: decides {other} from a restored state, and {one} before"
