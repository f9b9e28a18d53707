"""A Training is a named loop as its user would write it, with one planted illness or with none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.optim import Optimizer

from steadygrad.core.finding import Severity
from steadygrad.core.report import Report
from steadygrad.testing.case import first_of, generator_at, lies_in

Train = Callable[[], nn.Module]


@dataclass(frozen=True, slots=True)
class Training:
    """A short training with one planted illness, or with none although it looks ill.

    `train` builds everything, trains, and returns the model. `codes` are the codes of which the
    first finding above a note must carry one; none for a healthy training. `where` are the places
    that it may point at first, as a Patient's. `twin` is the same training without the illness.
    `raises` is what ends the sick training.
    """

    name: str
    train: Train
    codes: frozenset[str] = frozenset()
    where: tuple[str, ...] = ()
    why: str = ""
    twin: Train | None = None
    raises: tuple[type[Exception], ...] = ()

    def run(self, seed: int = 0) -> nn.Module:
        """Train from this seed; the global generator is left as it was. A few raise `raises`."""
        with generator_at(seed):
            return self.train()

    def run_twin(self, seed: int = 0) -> nn.Module | None:
        """Train the healthy twin from this seed; None where the training has none."""
        if self.twin is None:
            return None
        with generator_at(seed):
            return self.twin()

    def found(self, report: Report) -> bool:
        """Whether the report has a finding above a note."""
        return first_of(report, Severity.risk) is not None

    def named(self, report: Report) -> bool:
        """Whether the first finding above a note carries one of the codes."""
        first = first_of(report, Severity.risk)
        return first is not None and first.code in self.codes

    def located(self, report: Report) -> bool:
        """Whether the first finding above a note points at a guilty place first."""
        first = first_of(report, Severity.risk)
        return first is not None and bool(first.where) and lies_in(first.where[0], self.where)


def ill(
    name: str,
    codes: str,
    where: str,
    train: Train,
    twin: Train,
    why: str,
) -> Training:
    """Make a sick Training; codes and places are separated by blanks."""
    return Training(name, train, frozenset(codes.split()), tuple(where.split()), why, twin)


def fit(
    model: nn.Module,
    optimizer: Optimizer,
    loss_of: Callable[[int], Tensor],
    steps: int = 60,
    before_step: Callable[[int], object] = lambda _step: None,
) -> nn.Module:
    """Train as everybody does: clear, compute the loss, go backward, clip or so, step."""
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(step).backward()
        before_step(step)
        optimizer.step()
    return model
