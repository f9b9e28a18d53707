"""What competes: contestants, the settings that they compete in, and attempts at training them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

DIGITS = "digits"


@dataclass(frozen=True, slots=True, order=True)
class Setting:
    """Where contestants meet: so many blocks, units, and what all drawn weights are multiplied by.

    A depth or a width of 0 stands for a task that takes none.
    """

    depth: int
    width: int
    gain: float = 1.0


@dataclass(frozen=True, slots=True, order=True)
class Contestant:
    """One choice of each kind, by name or as FILE.py:FUNCTION."""

    architecture: str
    activation: str
    norm: str
    init: str
    optimizer: str

    @property
    def problem(self) -> tuple[str, str, str, str]:
        """What an initialisation has to make trainable."""
        return self.architecture, self.activation, self.norm, self.optimizer


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """A contestant in a setting."""

    setting: Setting
    contestant: Contestant


@dataclass(frozen=True, slots=True, order=True)
class Attempt:
    """One training of a cell: its task, learning rate, seed, and number of steps."""

    cell: Cell
    task: str
    lr: float
    seed: int
    steps: int


@dataclass(frozen=True, slots=True)
class Score:
    """How an attempt went.

    `end` is the median loss of its last fifth, inf where it diverged; `first` its first loss. `why`
    is empty, or says what ended it: "diverged at step 12", "unfit: ...", "failed: ...". `decades`
    are log10 of the gradient's norm before the blocks over that behind them, at the start; NaN
    where it was not read; `seconds` are of the processor.
    """

    end: float
    first: float = math.inf
    why: str = ""
    decades: float = math.nan
    seconds: float = 0.0

    @property
    def played(self) -> bool:
        """Whether there was a training, however it ended."""
        return not self.why.startswith(("unfit", "failed"))


@dataclass(frozen=True, slots=True)
class Grid:
    """All that is to be compared: the product of its axes."""

    depths: Sequence[int] = (10, 30, 60)
    widths: Sequence[int] = (64,)
    gains: Sequence[float] = (1.0,)
    architectures: Sequence[str] = ("plain",)
    activations: Sequence[str] = ("relu", "gelu", "tanh")
    norms: Sequence[str] = ("none",)
    inits: Sequence[str] = ("he", "level", "edge-of-chaos", "lsuv")
    optimizers: Sequence[str] = ("sgd", "adam")
    task: str = DIGITS

    @property
    def settings(self) -> list[Setting]:
        """Depths, widths, and gains."""
        return [Setting(*one) for one in product(self.depths, self.widths, self.gains)]

    @property
    def contestants(self) -> Iterator[Contestant]:
        """Every choice of each kind."""
        axes = (self.architectures, self.activations, self.norms, self.inits, self.optimizers)
        return (Contestant(*one) for one in product(*axes))

    @property
    def size(self) -> int:
        """The number of cells, without making them."""
        axes = (
            *(self.depths, self.widths, self.gains, self.architectures, self.activations),
            *(self.norms, self.inits, self.optimizers),
        )
        return math.prod(map(len, axes))

    @property
    def cells(self) -> list[Cell]:
        """Every contestant in every setting."""
        return [Cell(one, other) for one in self.settings for other in self.contestants]


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how often is trained: in rounds, each twice as long for a share of the cells.

    In the first round each cell tries five learning rates, in the second the best two, in the last
    the best one. Rounds before the last have the seed 0; the last has seeds 1 to `seeds`, which
    chose nothing.
    """

    steps: int = 100
    seeds: int = 5
    keep: float = 0.5

    rounds = 3

    def steps_of(self, number: int) -> int:
        """Steps of a training in round 0, 1, or 2."""
        return max(10, self.steps >> (self.rounds - 1 - number))

    @property
    def most(self) -> float:
        """Steps of all rounds for each cell, if as many are kept as planned."""
        trainings = (5, 2 * self.keep, self.seeds * self.keep**2)
        return sum(n * self.steps_of(number) for number, n in enumerate(trainings))
