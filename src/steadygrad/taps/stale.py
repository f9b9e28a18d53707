"""Whether the gradients of one step are still there when the next backward pass begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from steadygrad.probe.trace import users_line

Mark = tuple[int, int, int]  # place of a parameter, id and version of its gradient


@dataclass(slots=True)
class Staleness:
    """Of one optimizer: exact, as a gradient that nobody has touched is the very same tensor.

    Gradients are stale when a backward pass adds to those of a step that has been made. A pass that
    finds them there is under suspicion; it is cleared when somebody zeroes them before the step
    (another network's backward pass came between).
    """

    parameters: Sequence[Tensor]
    steps: int = 0
    stale: int = 0
    line: tuple[str, int] = ("", 0)  # of the first backward pass that found some
    _left: list[Mark] = field(default_factory=list)
    suspected: bool = False  # whether this pass has found gradients of the last step
    _first: bool = False

    def stepped(self) -> None:
        """A step was made: note what it leaves behind."""
        self.steps += 1
        self.stale += self.suspected
        self.suspected, self._first = False, True
        self._left = self._marks()

    def backward_begins(self) -> None:
        """Ask whether what the last step left is still there, untouched."""
        now = self._marks()
        if self._first:
            self.suspected = bool(self._left) and now == self._left
            if self.suspected and not self.line[1]:
                self.line = users_line()
            self._first = False
        elif self.suspected and now != self._left:
            self.suspected = False

    def backward_ended(self) -> None:
        """Take the gradients as they are now for untouched."""
        if self.suspected:
            self._left = self._marks()

    def _marks(self) -> list[Mark]:
        """Of the first parameter that has a gradient."""
        for place, one in enumerate(self.parameters):
            grad = one.grad
            if grad is not None:
                return [(place, id(grad), grad._version)]
        return []
