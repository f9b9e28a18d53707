"""Go back to an earlier step when skipping does not help."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from steadygrad.guards.gradients import Decision, Gradients
from steadygrad.guards.policies.checks import whole
from steadygrad.guards.policies.snapshot import Snapshot, Stateful, held, put_back, take
from steadygrad.guards.policy import Event, State, Surroundings


@dataclass
class rollback:  # noqa: N801 - reads as a function where it is used
    """Restore the last snapshot at `after` skips in a row, and the one before at as many again.

    A snapshot is taken every `every` steps that are made, of parameters, buffers (of the model
    given to guard()), optimizer, `others` (scheduler, GradScaler: whatever has a state_dict) and
    random states; `keep` are kept, on the device or, with `offload`, in the CPU's memory. The
    data goes on, so that the batches that made trouble are not met again; for the same reason
    random states are restored with `replay` only: many loops draw batches from them. A copy of 120
    million parameters with Adam's moments takes 0.14 s.

    **Reference.** Chowdhery 2022 (PaLM), section 5.1: restart 100 steps earlier with other data.
    """

    after: int = 3
    every: int = 100
    keep: int = 2
    others: Sequence[Stateful] = ()
    offload: bool = False
    replay: bool = False
    name: str = "rollback"
    steps: list[int] = field(default_factory=list, init=False)  # that were gone back to
    _ring: deque[Snapshot] = field(init=False, repr=False)
    _around: Surroundings | None = field(default=None, init=False, repr=False)
    _skips: int = field(default=0, init=False, repr=False)
    _made: int = field(default=0, init=False, repr=False)
    _next: int = field(default=0, init=False, repr=False)  # number of the step to come

    def __post_init__(self) -> None:
        whole("after", self.after, 1)
        whole("every", self.every, 1)
        whole("keep", self.keep, 1)
        self._ring = deque(maxlen=self.keep)

    def attach(self, surroundings: Surroundings) -> None:
        """Remember what to copy."""
        self._around = surroundings

    def decide(self, gradients: Gradients) -> Decision:
        """Let every step pass; copy before the first one."""
        if not self._ring:
            self._take(self._next)
        return Decision()

    def observe(self, event: Event) -> None:
        """Copy now and then, and go back after skips."""
        self._next = event.step + 1
        if event.skipped:
            self._skips += event.by != ("scaler",)
            if self._skips and self._skips % self.after == 0:
                self._go_back(event)
            return
        self._skips = 0
        self._made += 1
        if self._made % self.every == 0:
            self._take(event.step)

    def _take(self, step: int) -> None:
        around = self._known()
        tensors = held(around.optimizer, around.model)
        device = "cpu" if self.offload else None
        self._ring.append(take(step, around.optimizer, tensors, self.others, device))

    def _go_back(self, event: Event) -> None:
        around = self._known()
        snapshot = self._ring[-1]
        if not snapshot.fits(around.optimizer):  # a group was added since
            self._ring.clear()
            self._take(event.step)
            return
        if len(self._ring) > 1:
            self._ring.pop()  # the next time goes further back
        put_back(snapshot, around.optimizer, self.others, replay=self.replay)
        self.steps.append(snapshot.step)
        warnings.warn(
            f"steadygrad: {self._skips} steps in a row were skipped up to step {event.step}; "
            f"went back to the weights of step {snapshot.step}",
            RuntimeWarning,
            stacklevel=2,
        )

    def _known(self) -> Surroundings:
        if self._around is None:
            raise RuntimeError("expected a policy that sg.guard() has attached: hand it to guard()")
        return self._around

    def state_dict(self) -> State:
        """Return the counts; snapshots are taken anew in a resumed run."""
        counts = {"made": self._made, "skips": self._skips, "next": self._next}
        return {**counts, "steps": list(self.steps)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the counts."""
        self._made, self._skips, self._next = state["made"], state["skips"], state["next"]
        self.steps = list(state["steps"])
