"""A Case is a network as its user would hand it over; a Patient is a named way to build one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from steadygrad.core.finding import Finding, Severity
from steadygrad.core.report import Report
from steadygrad.probe.tree import Tree

Loss = Callable[[nn.Module], Tensor]


@dataclass(frozen=True, slots=True)
class Case:
    """A model, and what is given to `check` along with it."""

    model: nn.Module
    inputs: Tree = None
    loss: Loss | None = None
    optimizer: Optimizer | None = None

    def arguments(self) -> Mapping[str, Any]:
        """Keyword arguments for `check`; Any because the values' types differ."""
        return {"inputs": self.inputs, "loss": self.loss, "optimizer": self.optimizer}


@dataclass(frozen=True, slots=True)
class Patient:
    """A network with one planted illness, or with none although it looks ill.

    `codes` are the codes of which the root finding must carry one; none for a healthy network.
    `where` are the names it may point at first: a module or parameter or anything below it, or
    `data`, `target`, `loss`, `optimizer`, `lr`. `twin` makes the same network without the illness.
    `least` is the severity that the finding must reach.
    """

    name: str
    make: Callable[[], Case]
    codes: frozenset[str] = frozenset()
    where: tuple[str, ...] = ()
    why: str = ""
    twin: Callable[[], Case] | None = None
    least: Severity = Severity.risk

    def build(self, seed: int = 0) -> Case:
        """Build the network from this seed; the global random generators are left as they were."""
        return seeded(self.make, seed)

    def build_twin(self, seed: int = 0) -> Case | None:
        """Build the healthy twin from this seed, None where the patient has none."""
        return None if self.twin is None else seeded(self.twin, seed)

    def found(self, report: Report) -> bool:
        """Whether the report has a finding that is at least as severe as it should be."""
        return any(one.severity >= self.least for one in report.findings)

    def named(self, report: Report) -> bool:
        """Whether the first finding of this report carries one of the codes."""
        first = first_of(report, self.least)
        return first is not None and first.code in self.codes

    def located(self, report: Report) -> bool:
        """Whether the first finding of this report points at the guilty place first."""
        first = first_of(report, self.least)
        return first is not None and bool(first.where) and lies_in(first.where[0], self.where)


def first_of(report: Report, least: Severity) -> Finding | None:
    """Return the first finding that is at least so severe."""
    return next((one for one in report.findings if one.severity >= least), None)


def lies_in(place: str, names: Iterable[str]) -> bool:
    """Whether a place is one of some names, or below one."""
    return any(place == one or place.startswith(f"{one}.") for one in names)


def sick(
    name: str,
    codes: str,
    where: str,
    make: Callable[[], Case],
    twin: Callable[[], Case] | None,
    why: str,
) -> Patient:
    """Make a Patient; codes and places are separated by blanks."""
    return Patient(name, make, frozenset(codes.split()), tuple(where.split()), why, twin)


def seeded(make: Callable[[], Case], seed: int) -> Case:
    """Call make with torch's generator at this seed; leave the generator as it was."""
    with generator_at(seed):
        return make()


@contextmanager
def generator_at(seed: int) -> Iterator[None]:
    """Set torch's CPU generator inside the block and restore it afterwards."""
    before = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)
