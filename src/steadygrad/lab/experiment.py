"""What an experiment is: a published claim, what measures it, a tolerance with its reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

Size = Literal["tiny", "default", "full"]
Tell = Callable[[float], None]
T = TypeVar("T")


def _silent(_: float) -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How large an experiment is run, from which seed, and who is told the share that is done.

    `tiny` is for tests of the code and need not reach the tolerance; `default` fits two CPU cores
    in two minutes; `full` is the paper's size, or as near to it as one machine comes.
    """

    size: Size = "default"
    seed: int = 0
    tell: Tell = _silent

    def pick(self, tiny: T, default: T, full: T) -> T:
        """Return what belongs to this size."""
        return {"tiny": tiny, "default": default, "full": full}[self.size]

    def each(self, items: Sequence[T]) -> Iterator[T]:
        """Go through the parts of an experiment, telling how far it is."""
        for number, item in enumerate(items):
            yield item
            self.tell((number + 1) / len(items))


@dataclass(frozen=True, slots=True)
class Measure:
    """One number of ours, between which bounds it must lie, and the number that was published.

    `published` is None where the paper states an order and no number; the bounds say it then.
    """

    name: str
    ours: float
    low: float
    high: float
    published: float | None = None

    @property
    def within(self) -> bool:
        """Whether our number lies within the bounds; NaN does not."""
        return self.low <= self.ours <= self.high


def near(name: str, ours: float, published: float, relative: float) -> Measure:
    """Return a measure that must be within a share of the published number."""
    apart = relative * abs(published)
    return Measure(name, float(ours), published - apart, published + apart, published)


def below(name: str, ours: float, most: float) -> Measure:
    """Return a measure that must not be above a bound."""
    return Measure(name, float(ours), float("-inf"), most)


def above(name: str, ours: float, least: float) -> Measure:
    """Return a measure that must not be below a bound."""
    return Measure(name, float(ours), least, float("inf"))


@dataclass(frozen=True, slots=True)
class Curve:
    """A named line [points] of a figure; theory is dashed, measurement is drawn through points."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    theory: bool = False


@dataclass(frozen=True, slots=True)
class Figure:
    """Curves over one pair of axes, each with its unit in its label; `log` names log axes."""

    x: str
    y: str
    curves: Sequence[Curve]
    log: Literal["", "x", "y", "xy"] = ""


@dataclass(frozen=True, slots=True)
class Result:
    """What an experiment measured; the first measure stands for it in lists."""

    measures: Sequence[Measure]
    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    figure: Figure

    @property
    def within(self) -> bool:
        """Whether every measure is within its bounds."""
        return all(one.within for one in self.measures)


Run = Callable[[Plan], Result]


@dataclass(frozen=True, slots=True)
class Experiment:
    """A published result with what reproduces it. `page` is the docstring of its run."""

    name: str
    claim: str
    published: str
    tolerance: str
    source: str
    run: Run = field(repr=False)

    @property
    def page(self) -> str:
        """How it is measured here, and where that differs from the paper."""
        return (self.run.__doc__ or "").strip()


def experiment(
    name: str, *, claim: str, published: str, tolerance: str, source: str
) -> Callable[[Run], Experiment]:
    """Make an experiment of a function that runs it.

    Args:
        name: Its paper: first author and year.
        claim: What the paper says, in one sentence.
        published: The number, with section, equation or figure.
        tolerance: How far ours may be, and why so far.
        source: Author, year, title.
    """
    return lambda run: Experiment(name, claim, published, tolerance, source, run)
