"""What a sink is: a place where a watched training is shown while it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from steadygrad.core.finding import Finding


class Sink(Protocol):
    """A place where a training is shown: a file, a tracker of experiments, whatever you write.

    One thread calls everything, in this order, and no step of the training waits for it. What a
    method raises is said once, and the training goes on.
    """

    def open(self, name: str) -> None:
        """Begin a run; the name may be empty."""

    def row(self, step: int, numbers: Mapping[str, float]) -> None:
        """Show the numbers of a step, by `metric/site`; what was broken is inf, never NaN."""

    def finding(self, found: Finding) -> None:
        """Show a finding above a note, as an alert where there is such a thing."""

    def close(self) -> None:
        """End the run."""


def heading(found: Finding) -> str:
    """Return what a finding is called: `G102 vanishing-gradient`."""
    return f"{found.code} {found.name}"
