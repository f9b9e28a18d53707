"""Stop a run of which every step is skipped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from steadygrad.guards.gradients import Decision, Gradients
from steadygrad.guards.policies.checks import whole
from steadygrad.guards.policy import Event, State


class TrainingStopped(RuntimeError):  # noqa: N818 - it may be what was asked for
    """Raised from `optimizer.step()` by a guard that sees no point in going on.

    `events` are the skipped steps, the oldest first.
    """

    def __init__(self, message: str, events: tuple[Event, ...] = ()) -> None:
        super().__init__(message)
        self.events = events


@dataclass
class stop_after:  # noqa: N801 - reads as a function where it is used
    """Raise TrainingStopped once `skips` steps in a row were skipped.

    A run that skips all its steps looks healthy from outside. Steps that a GradScaler skips while
    it looks for its scale do not count.
    """

    skips: int = 10
    name: str = "stop_after"
    _row: list[Event] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        whole("skips", self.skips, 1)

    def decide(self, gradients: Gradients) -> Decision:
        """Let every step pass."""
        return Decision()

    def observe(self, event: Event) -> None:
        """Count, and stop."""
        if not event.skipped:
            self._row.clear()
        elif event.by != ("scaler",):
            self._row.append(event)
        if len(self._row) >= self.skips:
            row = tuple(self._row)
            self._row.clear()
            raise TrainingStopped(_sentence(row), row)

    def state_dict(self) -> State:
        """Return nothing: a resumed run counts anew."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Count anew."""
        self._row.clear()


def _sentence(row: tuple[Event, ...]) -> str:
    first = row[0]
    suspect = first.suspects[0][0] if first.suspects else "an unknown parameter"
    return (
        f"training stopped: the {len(row)} steps from step {first.step} on were skipped by "
        f"{', '.join(first.by)}; the gradient norm was {first.norm:.3g}, led by {suspect}: "
        "look at handle.history, or run `steadygrad check` on the script"
    )
