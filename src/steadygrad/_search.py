"""Which remedies are tried, in what order, with how many steps, and which one is prescribed.

It knows trainings by their outcomes alone: `Run` makes them, wherever that may be.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from steadygrad.core.finding import Finding, Severity
from steadygrad.core.trial import (
    Arm,
    Comparison,
    Confirmation,
    Cure,
    Outcome,
    Trial,
    smallest,
)
from steadygrad.remedies.applied import BY_NAME, ordered
from steadygrad.remedies.catalogue import REMEDIES
from steadygrad.remedies.remedy import Remedy

Run = Callable[[Sequence[Arm]], Iterator[tuple[Arm, Outcome]]]
"""Makes trainings, several at once where it can, and hands out each as it ends."""

Tell = Callable[[Cure], None]

SHORT = 4  # a first trial has so much less steps than a whole one
FINALISTS = 2  # that go on to all steps, and then to all seeds
LONGER = 4  # the confirmation has so many times the steps, where the budget allows


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is spent: `steps` of a whole trial, on `seeds`, `budget` steps in all.

    `random` is whether blind draws get as many steps as what the diagnosis proposes.
    """

    steps: int = 60
    seeds: tuple[int, ...] = (0, 1, 2)
    budget: int = 1000
    random: bool = True

    @property
    def short(self) -> int:
        """Steps of a first trial."""
        return max(8, self.steps // SHORT)

    @property
    def width(self) -> int:
        """How many remedies get a first trial, within the budget."""
        whole = self.steps * len(self.seeds)
        left = self.budget - whole - 2 * self.steps  # untouched, and the confirmation
        share = left / (2 if self.random else 1)
        return max(2, int((share - whole - self.steps) // self.short))

    @property
    def most(self) -> int:
        """Steps of training at most."""
        whole = self.steps * len(self.seeds)
        arms = self.width * self.short + self.steps + whole
        return whole + arms * (2 if self.random else 1) + 2 * self.steps


GENERAL = ("adam", "selu", "lr-x0.1", "lr-x10", "layer-norm", "clip-norm", "level-init", "lr-x3")
"""What is tried besides what was found calls for: chosen by us, one of each kind first."""

ALIASES = {
    "lower-lr": ("lr-x0.1", "lr-x0.01", "lr-x0.3", "sharpness-lr"),
    "higher-lr": ("lr-x10", "lr-x100", "lr-x3", "sharpness-lr"),
    "normalise": ("layer-norm", "batch-norm"),
    "swap-activation": ("selu", "leaky-relu", "gelu"),
    "skip-init": ("zero-branches",),
    "scale-residual": ("depth-scaled-residual",),
    "register-layers": ("register",),
}
"""Advice of findings that goes by other names than the remedies that do it."""


def proposals(findings: Sequence[Finding], folded: Sequence[Finding]) -> list[Remedy]:
    """Remedies for what was found, the most specific of each kind first, then those of all trades.

    A finding's own advice comes first, then what is made for its code, then for its symptoms'.
    """
    roots = [one for one in findings if one.severity > Severity.note]
    advice = [one.remedy for found in roots for one in found.try_next]
    names = [name for one in advice for name in ALIASES.get(one, (one,))]
    found = [BY_NAME[name] for name in names if name in BY_NAME]
    codes = [one.code for one in roots]
    codes += [code for one in roots for code in one.symptoms]
    codes += [one.code for one in folded]
    for code in dict.fromkeys(codes):
        mine = [one for one in REMEDIES if code in one.cures]
        found += sorted(mine, key=lambda one: (one.cures.index(code), one.size))
    found += [BY_NAME[name] for name in GENERAL]
    return _in_turn(list(dict.fromkeys(found)))


def _in_turn(remedies: Sequence[Remedy]) -> list[Remedy]:
    """The first of each kind, then the second of each: what is alike fails alike.

    Those for data and wiring come first, all of them: most do not fit, which costs no step.
    """
    ranks: dict[str, int] = {}
    ranked = []
    for one in remedies:
        ranks[one.kind] = ranks.get(one.kind, -1) + 1
        ranked.append((0 if one.kind in ("data", "wiring") else ranks[one.kind], one))
    return [one for _, one in sorted(ranked, key=lambda pair: pair[0])]


def drawn(count: int, seed: int) -> list[tuple[Remedy, ...]]:
    """Blind draws of one to three remedies of different kinds."""
    dice = random.Random(seed)
    found: list[tuple[Remedy, ...]] = []
    while len(found) < count:
        kinds: dict[str, Remedy] = {}
        for one in dice.sample(REMEDIES, dice.randint(1, 3)):
            kinds.setdefault(one.kind, one)
        chosen = tuple(ordered(list(kinds.values())))
        if chosen not in found:
            found.append(chosen)
    return found


@dataclass(slots=True)
class Search:
    """One search for a cure; `known` are the outcomes so far."""

    run: Run
    plan: Plan
    tell: Tell = lambda _: None
    known: dict[Arm, Outcome] = field(default_factory=dict)
    random: set[tuple[str, ...]] = field(default_factory=set)
    said: list[str] = field(default_factory=list)

    # --- The arms --------------------------------------------------------------------------------

    def make(self, arms: Sequence[Arm]) -> None:
        """Make the trainings that are not known yet."""
        wanted = [one for one in dict.fromkeys(arms) if one not in self.known]
        for arm, outcome in self.run(wanted):
            self.known[arm] = outcome
            self.tell(self.cure())

    def untouched(self) -> list[Outcome]:
        """The training as it is, on all seeds."""
        arms = [Arm((), seed, self.plan.steps) for seed in self.plan.seeds]
        self.make(arms)
        return [self.known[one] for one in arms]

    def search(self, candidates: Sequence[Remedy]) -> None:
        """Halve what is proposed, join two that help, and do the same with blind draws."""
        names = self._fitting([(one.name,) for one in candidates])
        self._finals(names)
        self._join(names)
        if self.plan.random:
            most = 4 * self.plan.width
            draws = [tuple(r.name for r in one) for one in drawn(most, seed=0)]
            self.random |= set(draws) - set(names)
            self._finals(self._fitting(draws))

    def _fitting(self, remedies: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
        """Give short trials to as many as the plan has room for, passing over what is unfit."""
        waiting, fitting = list(remedies), list[tuple[str, ...]]()
        while waiting and len(fitting) < self.plan.width:
            room = self.plan.width - len(fitting)
            now, waiting = waiting[:room], waiting[room:]
            self.make([self._short(one) for one in now])
            fitting += [one for one in now if not self.known[self._short(one)].unfit]
        return fitting

    def _short(self, names: tuple[str, ...]) -> Arm:
        return Arm(names, self.plan.seeds[0], self.plan.short)

    def _finals(self, names: Sequence[tuple[str, ...]]) -> None:
        """Let the best short trials be whole ones, and the best of those have all seeds."""
        short, steps, first = self.plan.short, self.plan.steps, self.plan.seeds[0]
        best = sorted(names, key=lambda one: self.known[self._short(one)].end(short))[:FINALISTS]
        arms = [Arm(one, first, steps) for one in best]
        self.make(arms)
        arms.sort(key=lambda one: self.known[one].end(steps))
        for winner in arms[:1]:
            self._on_all_seeds(winner.remedies)

    def _on_all_seeds(self, names: tuple[str, ...]) -> None:
        """A whole trial on all seeds, unless the first was no better than nothing."""
        first, steps = self.plan.seeds[0], self.plan.steps
        if self._compared(names, (first,), steps).verdict == "unsure":  # better, on one seed
            self.make([Arm(names, seed, steps) for seed in self.plan.seeds])

    def _join(self, names: Sequence[tuple[str, ...]]) -> None:
        """Try two finalists together, where both help and the budget has room."""
        first, steps = self.plan.seeds[0], self.plan.steps
        whole = [one for one in names if Arm(one, first, steps) in self.known]
        helping = [one for one in whole if self._compared(one, (first,), steps).effect < 0]
        for one, other in combinations(helping[:2], 2):
            kinds = {BY_NAME[name].kind for name in (*one, *other)}
            joined = tuple(r.name for r in ordered([BY_NAME[n] for n in (*one, *other)]))
            if len(kinds) == len(joined) and self._has_room():
                self.make([Arm(joined, first, steps)])
                better = self.known[Arm(joined, first, steps)].end(steps)
                if better < self.known[Arm(one, first, steps)].end(steps):
                    self._on_all_seeds(joined)

    def _has_room(self) -> bool:
        """Whether the budget holds one more trial on all seeds, besides what is to come."""
        plan = self.plan
        whole = plan.steps * len(plan.seeds)
        draws = plan.width * plan.short + plan.steps + whole if plan.random else 0
        return self.spent + whole + draws + 2 * plan.steps <= plan.budget

    @property
    def spent(self) -> int:
        """Steps of training so far."""
        return sum(len(one.losses) for one in self.known.values())

    def confirm(self) -> None:
        """Run the chosen change for longer, beside the untouched training."""
        chosen = smallest(self.trials())
        if chosen is None:
            return
        left = max(0, self.plan.budget - self.spent) // 2
        steps = min(LONGER * self.plan.steps, max(self.plan.steps, left))
        if steps > self.plan.steps:
            seed = self.plan.seeds[0]
            self.make([Arm((), seed, steps), Arm(chosen.remedies, seed, steps)])

    # --- What came of it -------------------------------------------------------------------------

    def _compared(self, names: tuple[str, ...], seeds: Sequence[int], steps: int) -> Comparison:
        """Trials of these remedies beside as many steps of the untouched training."""
        bare = [self.known[Arm((), seed, self.plan.steps)] for seed in seeds]
        mine = [self.known[Arm(names, seed, steps)] for seed in seeds]
        steps = min([steps, *(len(one.losses) for one in bare if not one.error)])
        return Comparison(
            tuple(one.end(steps) for one in bare),
            tuple(one.end(steps) for one in mine),
            tuple(one.start for one in bare),
        )

    def trials(self) -> list[Trial]:
        """One row for each set of remedies, the untouched training first."""
        every = dict.fromkeys(arm.remedies for arm in self.known)
        found = [self._trial(one) for one in every if one]
        ranks = {"helps": 0, "unsure": 1, "no effect": 2, "worse": 3, "crashed": 4, "unfit": 5}
        found.sort(key=lambda one: (one.random, ranks[one.verdict], -one.steps, min(one.after)))
        return [*self._nothing(), *found]

    def _nothing(self) -> list[Trial]:
        arms = [Arm((), seed, self.plan.steps) for seed in self.plan.seeds]
        ends = [self.known[one] for one in arms if one in self.known]
        if not ends:
            return []
        steps = self.plan.steps
        losses = tuple(one.end(steps) for one in ends)
        why = next((one.error for one in ends if one.error), "")
        seeds = tuple(arm.seed for arm in arms if arm in self.known)
        return [Trial((), seeds, steps, losses, losses, "no effect", 0.0, why=why)]

    def _trial(self, names: tuple[str, ...]) -> Trial:
        mine = {arm: self.known[arm] for arm in self.known if arm.remedies == names}
        steps = max(arm.steps for arm in mine if arm.steps <= self.plan.steps)
        arms = [arm for arm in mine if arm.steps == steps]
        seeds = tuple(arm.seed for arm in arms)
        compared, first = self._compared(names, seeds, steps), mine[arms[0]]
        error = next((one.error for one in mine.values() if one.error), "")
        verdict = compared.verdict
        if first.unfit:
            verdict = "unfit"
        elif error and not all(map(math.isfinite, compared.after)):
            verdict = "crashed"
        return Trial(
            names,
            seeds,
            steps,
            compared.before,
            compared.after,
            verdict,
            compared.effect,
            compared.interval,
            sum(BY_NAME[name].size for name in names),
            first.patch,
            first.imitates,
            first.unfit or error,
            names in self.random,
        )

    def cure(self) -> Cure:
        """Everything so far."""
        trials = self.trials()
        chosen = smallest(trials)
        return Cure(
            tuple(trials),
            "" if chosen is None else chosen.name,
            None if chosen is None else self._confirmation(chosen),
            self.spent,
            tuple(self.said),
        )

    def _confirmation(self, chosen: Trial) -> Confirmation | None:
        seed = self.plan.seeds[0]
        longer = [arm for arm in self.known if arm.steps > self.plan.steps]
        mine = next((arm for arm in longer if arm.remedies == chosen.remedies), None)
        if mine is None or Arm((), seed, mine.steps) not in self.known:
            return None
        bare = self.known[Arm((), seed, mine.steps)]
        steps = min(mine.steps, len(bare.losses) or mine.steps)
        return Confirmation(steps, seed, bare.end(steps), self.known[mine].end(steps))
