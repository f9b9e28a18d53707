"""Which remedies are tried, in what order, with how many steps, and which one is prescribed.

It knows trainings by their outcomes alone: `Run` makes them, wherever that may be.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean

from steadygrad.core.finding import Finding, Severity, remedies_of
from steadygrad.core.trial import (
    Arm,
    Comparison,
    Confirmation,
    Cure,
    Outcome,
    Trial,
    cheapest,
    smallest,
)
from steadygrad.remedies.applied import BY_NAME, ordered
from steadygrad.remedies.catalogue import REMEDIES
from steadygrad.remedies.remedy import Remedy

Run = Callable[[Sequence[Arm]], Iterator[tuple[Arm, Outcome]]]
"""Makes trainings, several at once where it can, and hands out each as it ends."""

Tell = Callable[[Cure], None]
Names = tuple[str, ...]
"""Remedies by name, in the order in which they are applied."""

SHORT = 4  # a first trial has so much less steps than a whole one
SINGLES = 4  # remedies that are tried alone before the best is joined with others
ROUND = 3  # trials that are chosen at a time after that
HEALING = 4  # remedies that end a NaN alike, after which no further one is looked for
ALIKE = 10  # times the lowest loss, within which they are alike
BOTTOMLESS = 10  # times as far below zero as it began above is a loss without a bottom, perhaps
JOINED = 3  # remedies at most in one trial
LONG = 1.5  # times the steps that a longer run has at least
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
    def whole(self) -> int:
        """Steps of a whole trial on all seeds."""
        return self.steps * len(self.seeds)

    @property
    def finals(self) -> int:
        """Steps of two whole trials on one seed, and of one of them on the others."""
        return self.whole + self.steps

    @property
    def sides(self) -> int:
        """Who tries: what the diagnosis proposes, and blind draws."""
        return 2 if self.random else 1

    @property
    def share(self) -> int:
        """Steps of each side, besides the untouched training and the confirmation."""
        return (self.budget - self.whole - 2 * self.steps) // self.sides

    @property
    def least(self) -> int:
        """Steps without which there is no choice: two remedies tried by each side."""
        return self.whole + self.sides * (2 * self.short + self.finals) + 2 * self.steps


GENERAL = (
    "adam", "selu", "default-lr", "lr-x0.1", "lr-x10", "layer-norm", "clip-norm", "level-init",
    "lr-x3",
)  # fmt: skip
"""What is tried besides what was found calls for: chosen by us, one of each kind first."""

STRONGER = {"lr-x10": "lr-x100", "lr-x3": "lr-x10", "lr-x0.1": "lr-x0.01", "lr-x0.3": "lr-x0.1"}
"""What goes further in the direction of a remedy that has helped."""

LARGER = ("lr-x3", "lr-x10", "lr-x100")
SMALLER = ("lr-x0.3", "lr-x0.1", "lr-x0.01", "warm-up", "clip-norm", "clip-agc", "clip-value")
TOO_HIGH, TOO_LOW = ("G401", "G403", "G412", "G108"), ("G402", "G405")
"""Steps that are too large are not tried larger, nor those that are too small smaller."""

MENDING = ("data", "wiring")
"""Kinds of remedies that mend a fault, where others make up for it."""

UNJUDGED = ("G603",)
"""Findings of a loss without a lower bound: by it no other change can be judged."""

DRAWS = 100  # at most, unfit ones among them


def proposals(
    findings: Sequence[Finding], folded: Sequence[Finding], *, general: bool = True
) -> list[Remedy]:
    """Remedies for what was found, the most specific first, and with `general` those of all trades.

    A finding's own advice comes first, then what is made for its code, then for its symptoms'.
    Where the loss falls those of all trades would only make it fall faster.
    """
    roots = [one for one in findings if one.severity > Severity.note]
    advice = [one for found in roots for one in found.try_next]
    names = [name for one in advice for name in remedies_of(one)]
    found = [BY_NAME[name] for name in names if name in BY_NAME]
    codes = [one.code for one in roots]
    codes += [code for one in roots for code in one.symptoms]
    codes += [one.code for one in folded]
    for code in dict.fromkeys(codes):
        mine = [one for one in REMEDIES if code in one.cures]
        found += sorted(mine, key=lambda one: (one.cures.index(code), one.size))
    found += [BY_NAME[name] for name in GENERAL if general]
    shrinking = any(one in TOO_HIGH for one in codes)
    growing = not shrinking and any(one in TOO_LOW for one in codes)
    return [
        one
        for one in dict.fromkeys(found)
        if not (shrinking and one.name in LARGER) and not (growing and one.name in SMALLER)
    ]


def culprits(findings: Sequence[Finding]) -> tuple[str, ...]:
    """The places that are to be changed: not those where numbers only cease to be finite."""
    return tuple(w for one in findings if not one.code.startswith("G00") for w in one.where)


def _with(names: Names, more: Names) -> Names:
    """Remedies joined, in order; none where two are of a kind, or they are too many."""
    joined = [BY_NAME[name] for name in dict.fromkeys((*names, *more))]
    kinds = [one.kind for one in joined if one.kind not in MENDING]
    if len(set(kinds)) < len(kinds) or not len(names) < len(joined) <= JOINED:
        return ()
    return tuple(one.name for one in ordered(joined))


def _mends(names: Names) -> bool:
    """Whether remedies are for the data, the loss, or the wiring alone."""
    return all(BY_NAME[name].kind in MENDING for name in names)


def _stronger(names: Names) -> Names:
    """The same with more of it, where there is more to have."""
    return tuple(STRONGER.get(name, name) for name in names)


def _taken(waiting: list[Names], count: int) -> list[Names]:
    """Take some from the front."""
    taken, waiting[:] = waiting[:count], waiting[count:]
    return taken


def draws(count: int, seed: int) -> list[Names]:
    """Blind draws of one to three remedies of different kinds."""
    dice = random.Random(seed)
    found: dict[Names, None] = {}
    while len(found) < count:
        kinds: dict[str, Remedy] = {}
        for one in dice.sample(REMEDIES, dice.randint(1, JOINED)):
            kinds.setdefault(one.kind, one)
        found[tuple(one.name for one in ordered(list(kinds.values())))] = None
    return list(found)


@dataclass(slots=True)
class Search:
    """One search for a cure; `known` are the outcomes so far, `unfit` says what needs no trial."""

    run: Run
    plan: Plan
    tell: Tell | None = None
    known: dict[Arm, Outcome] = field(default_factory=dict)
    unfit: dict[str, str] = field(default_factory=dict)
    random: set[Names] = field(default_factory=set)
    said: list[str] = field(default_factory=list)

    # --- The arms --------------------------------------------------------------------------------

    def make(self, arms: Sequence[Arm]) -> None:
        """Make the trainings that are not known yet."""
        for arm in arms:
            why = next((self.unfit[name] for name in arm.remedies if name in self.unfit), "")
            if why:
                self.known.setdefault(arm, Outcome(unfit=why))
        wanted = [one for one in dict.fromkeys(arms) if one not in self.known]
        for arm, outcome in self.run(wanted):
            self.known[arm] = outcome
            if self.tell is not None:
                self.tell(self.cure())

    def untouched(self) -> list[Outcome]:
        """The training as it is, on all seeds."""
        arms = [Arm((), seed, self.plan.steps) for seed in self.plan.seeds]
        self.make(arms)
        return [self.known[one] for one in arms]

    def search(self, candidates: Sequence[Remedy]) -> None:
        """Try what is proposed, alone and joined; then blind draws, with as many steps."""
        before = self.spent
        self.mend(candidates)
        if self.plan.random and self.spent > before:
            waiting = [one for one in draws(DRAWS, seed=0) if not self._is_known(one)]
            self.random |= set(waiting)
            limit = min(self.spent + self.plan.share, self.plan.budget)
            self._finals(self._fitting(partial(_taken, waiting), limit), limit)

    def mend(self, candidates: Sequence[Remedy]) -> None:
        """Try what is proposed, alone and joined."""
        limit = self.spent + self.plan.share
        tried = self._climb([(one.name,) for one in candidates], limit)
        self._finals(tried, limit, spare=2 * self.plan.steps)

    def _climb(self, singles: Sequence[Names], limit: int) -> list[Names]:
        """Give short trials to some remedies alone, then to the best of them joined with others."""
        tried = self._fitting(partial(self._in_turn, singles), limit, SINGLES)
        while found := self._fitting(partial(self._next, singles, tried), limit, ROUND):
            tried += found
        return tried

    def _in_turn(self, singles: Sequence[Names], count: int) -> list[Names]:
        """The next to be tried alone: of each kind in turn, as what is alike fails alike.

        Those for data and wiring come first, all of them: most do not fit, which costs no step.
        """
        waiting = [one for one in singles if not self._is_known(one)]
        known = [one for one in singles if self._is_known(one) and not self._is_unfit(one)]
        turns = Counter(BY_NAME[name].kind for (name,) in known)
        chosen = list[Names]()
        while waiting and len(chosen) < count:
            best = min(waiting, key=lambda one: turns[BY_NAME[one[0]].kind])
            waiting.remove(best)
            chosen.append(best)
            kind = BY_NAME[best[0]].kind
            turns[kind] += kind not in MENDING
        return chosen

    def _next(self, singles: Sequence[Names], tried: Sequence[Names], count: int) -> list[Names]:
        """What is worth a short trial now: steps from the best so far, and another one alone.

        A training that breaks, or whose data, loss or wiring is wrong, needs what mends that, and
        nothing besides: once some do, it is for whole trials to tell which.
        """
        more = self._in_turn(singles, max(count, 1))
        best = self._best(tried)
        if best is not None and self._heals(best):
            level = ALIKE * abs(self._at_short(best))
            healing = sum(self._heals(one) and self._at_short(one) <= level for one in tried)
            return more[: max(0, min(count, HEALING - healing))]
        if best is None:
            return more[:count]
        alone = sorted((one for one in tried if len(one) == 1), key=self._rank)
        further = [_stronger(best), *(_with(best, one) for one in (*alone, *more))]
        steps = [one for one in dict.fromkeys(further) if one and not self._is_known(one)]
        return [*steps[: ROUND - 1], *more[:1], *steps[ROUND - 1 :]][:count]

    def _best(self, tried: Sequence[Names]) -> Names | None:
        """The best short trial; where none is better than nothing, what was proposed first."""
        if not tried:
            return None
        best = min(tried, key=self._rank)
        if not math.isfinite(self._at_short(best)):
            return None
        return best if self._is_better(best) else tried[0]

    def _heals(self, names: Names) -> bool:
        """Whether a remedy mends the fault itself, in a short trial."""
        bare = self.known[Arm((), self.plan.seeds[0], self.plan.steps)]
        broken = math.isinf(bare.end(self.plan.steps))
        known = self.known[self._short(names)]
        if broken and known.stands:
            return False
        return (broken or known.own or _mends(names)) and self._is_better(names)

    def _is_better(self, names: Names) -> bool:
        return self._compared(names, self.plan.seeds[:1], self.plan.short).verdict == "unsure"

    def _fitting(
        self, choose: Callable[[int], list[Names]], limit: int, most: int = DRAWS
    ) -> list[Names]:
        """Give short trials to what is chosen while there is room, passing over what is unfit."""
        fitting = list[Names]()
        while (room := min(self._room(limit), most - len(fitting))) and (now := choose(room)):
            self.make([self._short(one) for one in now])
            fitting += [one for one in now if not self._is_unfit(one)]
        return fitting

    def _room(self, limit: int) -> int:
        """How many more short trials leave enough for the finals."""
        return max(0, limit - self.plan.finals - self.spent) // self.plan.short

    def _is_known(self, names: Names) -> bool:
        return self._short(names) in self.known

    def _is_unfit(self, names: Names) -> bool:
        return bool(self.known[self._short(names)].unfit)

    def _short(self, names: Names) -> Arm:
        return Arm(names, self.plan.seeds[0], self.plan.short)

    def _at_short(self, names: Names) -> float:
        return self.known[self._short(names)].end(self.plan.short)

    def _rank(self, names: Names) -> tuple[bool, float]:
        """Lower is better: what mends the loss itself first, then by the loss."""
        mends = _mends(names) and self._heals(names)
        return not mends, self._at_short(names)

    def _finals(self, tried: Sequence[Names], limit: int, spare: int = 0) -> None:
        """Make whole trials of the best, alone and joined; the smallest that does has all seeds.

        Where it fails on one, the next best has them, for which there are `spare` steps besides.
        """
        plan = self.plan
        ranked = sorted(tried, key=self._rank)
        alone = [one for one in ranked if _mends(one)] or [one for one in ranked if len(one) == 1]
        ranked = list(dict.fromkeys([*ranked[:1], *alone[:1], *ranked]))
        room = max(2, (limit - self.spent - plan.whole) // plan.steps + 1)
        self.make([Arm(one, plan.seeds[0], plan.steps) for one in ranked[:room]])
        trials = [self._trial(one) for one in ranked[:room]]
        better = [one for one in trials if one.verdict == "unsure"]  # on one seed
        for chosen in (cheapest(better), *sorted(better, key=lambda one: one.after)):
            if chosen is None or self.spent + plan.whole - plan.steps > limit + spare:
                return
            self.make([Arm(chosen.remedies, seed, plan.steps) for seed in plan.seeds])
            if self._trial(chosen.remedies).verdict == "helps":
                return

    @property
    def spent(self) -> int:
        """Steps of training so far."""
        return sum(len(one.losses) for one in self.known.values())

    def confirm(self) -> None:
        """Run the chosen change for longer, beside the untouched training."""
        trials = self.trials()
        chosen = self._chosen(trials)
        if chosen is None:
            if self.stands and len(trials) > 1:
                stuck = f"in {self.plan.steps} steps the loss does not fall, changed or not"
                self.said.append(f"{stuck}: try more (--steps)")
            return
        self._tell_of_better_draws(chosen, trials)
        self._tell_of_a_part(chosen, trials)
        end = fmean(chosen.after)
        if end < -BOTTOMLESS * max(1.0, abs(chosen.start)):
            self.said.append(f"the loss falls to {end:.3g}: is there a bound below it?")
        seed, left = self.plan.seeds[0], self.plan.budget - self.spent
        both = not self.stands  # else the untouched training goes on as it is
        steps = min(LONGER * self.plan.steps, left // 2 if both else left)
        if steps >= LONG * self.plan.steps:
            arms = [Arm((), seed, steps)] if both else []
            self.make([*arms, Arm(chosen.remedies, seed, steps)])

    def _tell_of_better_draws(self, chosen: Trial, trials: Sequence[Trial]) -> None:
        """Say so where a blind draw ends lower than what is chosen, by more than 5 %."""
        helping = [one for one in trials if one.verdict == "helps"]
        best = cheapest(helping)
        if best is not None and best.random and not chosen.random:
            ends = f"{fmean(best.after):.3g} against {fmean(chosen.after):.3g}"
            self.said.append(f"{best.name}, drawn blindly, ends lower still: {ends}")

    def _tell_of_a_part(self, chosen: Trial, trials: Sequence[Trial]) -> None:
        """Say which part of the chosen change mends the fault, and what it does alone."""
        part = tuple(name for name in chosen.remedies if _mends((name,)))
        alone = next((one for one in trials if one.remedies == part), None)
        if not part or chosen.mends or alone is None or not math.isfinite(alone.after[0]):
            return
        others = " + ".join(name for name in chosen.remedies if name not in part)
        self.said.append(
            f"{alone.name} is what mends the fault; {others} makes the loss fall sooner: alone "
            f"{alone.name} comes to {alone.after[0]:.3g} in {alone.steps} steps"
        )

    # --- What came of it -------------------------------------------------------------------------

    def _compared(self, names: Names, seeds: Sequence[int], steps: int) -> Comparison:
        """Trials of these remedies beside as many steps of the untouched training."""
        bare = [self.known[Arm((), seed, self.plan.steps)] for seed in seeds]
        mine = [self.known[Arm(names, seed, steps)] for seed in seeds]
        steps = min([steps, *(len(one.losses) for one in bare if not one.error)])
        return Comparison(
            tuple(a.start if a.own else b.end(steps) for a, b in zip(mine, bare, strict=True)),
            tuple(one.end(steps) for one in mine),
            tuple(one.start for one in bare),
            all(one.own for one in mine),
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

    def _trial(self, names: Names) -> Trial:
        mine = {arm: self.known[arm] for arm in self.known if arm.remedies == names}
        steps = max(arm.steps for arm in mine if arm.steps <= self.plan.steps)
        arms = sorted(
            (arm for arm in mine if arm.steps == steps),
            key=lambda arm: self.plan.seeds.index(arm.seed),  # they end in any order
        )
        seeds = tuple(arm.seed for arm in arms)
        compared, first = self._compared(names, seeds, steps), mine[arms[0]]
        error = next((one.error for one in mine.values() if one.error), "")
        verdict = compared.verdict
        if verdict == "helps" and len(seeds) < len(self.plan.seeds):
            verdict = "unsure"
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
            first.own,
            _mends(names),
            fmean(mine[arm].start for arm in arms),
        )

    def _chosen(self, trials: Sequence[Trial]) -> Trial | None:
        return smallest(trials, blind=self.stands)

    @property
    def stands(self) -> bool:
        """Whether the untouched training learns nothing, on every seed."""
        return all(one.stands for arm, one in self.known.items() if not arm.remedies)

    def cure(self) -> Cure:
        """Everything so far."""
        trials = self.trials()
        chosen = self._chosen(trials)
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
        if mine is None:
            return None
        whole = self.known[Arm((), seed, self.plan.steps)]
        bare = self.known.get(Arm((), seed, mine.steps), whole)
        steps = min(mine.steps, len(self.known[mine].losses) or mine.steps)
        return Confirmation(steps, seed, bare.end(steps), self.known[mine].end(steps))
