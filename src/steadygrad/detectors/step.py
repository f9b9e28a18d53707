"""The first steps, tried on a copy: what the optimizer does at this learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from steadygrad.core.finding import Advice, Finding, Severity, detector
from steadygrad.core.record import Record

ADAPTIVE = ("adam", "rmsprop", "adagrad", "adadelta", "adafactor", "lamb", "lion", "sophia")
WIDE = "model.float()  # and torch.autocast(device_type, torch.bfloat16), or float16 and GradScaler"
Facts = Mapping[str, Any]  # JSON-like


@dataclass(frozen=True, slots=True)
class Arms:
    """The losses of a trial, by arm; `fall` is the share of the first loss that an arm loses.

    A falling loss has a positive fall; a broken one falls by minus infinity.
    """

    losses: Mapping[str, Sequence[float]]

    def fall(self, arm: str) -> float:
        """Fall of an arm, relative to the larger of the first loss and the largest fall of all.

        The end is the median of the last quarter, as large steps make a loss jump up and down.
        """
        losses = self.losses.get(arm)
        if not losses or not math.isfinite(losses[-1]):
            return -math.inf
        return (losses[0] - median(losses[-max(1, len(losses) // 4) :])) / self.scale

    @property
    def scale(self) -> float:
        """What losses are compared with; a loss may be negative, or near zero."""
        first = self.losses["lr"][0]
        ends = [losses[-1] for losses in self.losses.values() if math.isfinite(losses[-1])]
        return max(abs(first), max((first - end for end in ends), default=0.0), 1e-30)

    @property
    def lower(self) -> tuple[str, float]:
        """The smaller lr that does best, and its fall; minus infinity where none was tried."""
        falls = {arm: self.fall(arm) for arm in ("lr/10", "lr/100")}
        best = max(falls, key=lambda arm: falls[arm])
        return best, falls[best]

    @property
    def learned(self) -> bool:
        """Whether the loss fell by half at the lr before it leapt, and leapt less than 20 times."""
        return self.halved and self.peak < 20

    @property
    def drifts(self) -> bool:
        """Whether the loss rises by less than half, with no leap, and a smaller lr gains little."""
        return self.peak < 0.5 and self.lower[1] < 0.1

    @property
    def halved(self) -> bool:
        """Whether the loss fell by half at the lr, whatever came then."""
        seen = [loss for loss in self.losses["lr"] if math.isfinite(loss)]
        return bool(seen) and seen[0] - min(seen) > 0.5 * self.scale

    @property
    def peak(self) -> float:
        """How far the loss rose in between, in units of the scale."""
        losses = self.losses["lr"]
        top = max(losses) if all(map(math.isfinite, losses)) else math.inf
        return max((top - losses[0]) / self.scale, 0.0)


@detector("G401", "lr-too-high", needs=("update", "trial"), explains=("G108",))
def lr_too_high(record: Record) -> Iterator[Finding]:
    """A learning rate at which the loss does not fall, where it falls at a smaller one.

    **What it looks at.** A trial on copies: up to 20 of your optimizer's steps on one batch under
    the same random numbers, at your lr and, when that fails, at lr/10 and lr/100. Failing means:
    the loss ends broken or above its start by 1 %; or it has fallen by less than 15 %, or to no
    less than 90 % of what the best constant prediction of the batch's labels costs, although the
    first step changed the output by more than its own size, or the loss was at three times its
    start. What fails gets 60 steps (a leap may end in a flatter place: a catapult). It is the lr
    only if a smaller one falls by at least 1 %, by 5 % of the start more, and yours, with three
    times the steps, by less than 15 % or half of that. It is a risk, since a network that is sick
    otherwise may fail at any usual lr, and that comes first; it is broken when the loss becomes NaN
    or infinite within the trial without having halved before, no clipping and no loss scaler is
    there to stop that, and at the smaller lr it falls. It is a note when the loss rises slowly,
    without a leap, while a tenth of the lr gains less than 10 %: what a growing codebook or an
    opponent adds to a loss is not the lr's. It is a note when the loss had halved before it leapt,
    by less than 20 times: a batch that is learned by heart gets sharp, as a stream of batches does
    not (measured on a residual network at SGD 0.1 with momentum, which trains well). The limits are
    chosen by us: over 35 healthy pairs of model and optimizer (Adam 5e-5 to 1e-2, SGD 0.1 with
    momentum), three seeds each, none was a risk; of 13 with an lr 10 to 1000 times too large eight
    were, the others learned the batch. For SGD
    the limit (2 + 2 momentum) / lambda_max is measured beside it; an lr above it while the loss
    falls is a note: training at the edge of stability is healthy.

    **Why it matters.** The first steps throw the weights to where units are dead or saturated; the
    loss may look calm afterwards, at the value of a constant prediction, and stays there.

    **When it is wrong.** When gradients are clipped before the step, or a warm-up sets the lr in
    the loop: the check does not know. A schedule that is attached and warming up is seen, as the
    lr is small then. One batch tells nothing of gradient noise.

    **What to try.** The lr that fell. Warm-up. Clipping, where single steps leap.

    **References.** Cohen 2021 (edge of stability); Lewkowycz 2020 (catapult); Goyal 2017 (linear
    scaling, warm-up).
    """
    facts, arms = record.facts["update"], Arms(record.facts["trial"]["losses"])
    if not _lr_fails(record, arms):
        yield from _above_the_edge(record, arms)
    elif not _wants_warmup(facts, arms):
        yield _too_high(record, facts, arms)


def _lr_fails(record: Record, arms: Arms, *, least: float = 0.01, better: float = 0.05) -> bool:
    mine, (_, lower) = arms.fall("lr"), arms.lower
    late = _stood_at_first(record) or _learns_nothing(record, arms)
    stands = mine < 0.15 or (late and mine < 0.5 * lower)
    return stands and lower >= least and lower > mine + better


def _stood_at_first(record: Record) -> bool:
    """Whether the loss had not fallen by 15 % when the arms at smaller lr ended."""
    losses: list[float] = record.facts["trial"]["losses"]["lr"]
    then = losses[min(record.facts["trial"]["steps"], len(losses) - 1)]
    return not losses[0] - then >= 0.15 * abs(losses[0])


def _learns_nothing(record: Record, arms: Arms, *, least: float = 0.1) -> bool:
    """Whether the loss ends where a constant prediction of the batch's labels puts it."""
    entropies = [one.get("labels_entropy") for one in record.facts.get("losses") or []]
    entropy: float = entropies[0] or 0.0 if len(entropies) == 1 else 0.0
    return entropy > 0 and arms.losses["lr"][-1] > (1 - least) * entropy


def _too_high(record: Record, facts: Facts, arms: Arms) -> Finding:
    end = arms.losses["lr"][-1]
    arm, _ = arms.lower
    smaller = facts["lr"] / float(arm.partition("/")[2])
    sharp = record.facts.get("sharpness") or {}
    evidence = {**sharp, **_numbers(facts, arms)}
    return Finding(
        _blame(record, facts, arms),
        f"at lr {facts['lr']:g} the loss on one batch goes from {arms.losses['lr'][0]:.3g} to "
        f"{end:.3g} in {len(arms.losses['lr']) - 1} steps; at {smaller:g} to "
        f"{arms.losses[arm][-1]:.3g}, from the same state.",
        ("lr",),
        evidence,
        ruled_out=("the batch, the weights, the randomness: they are the same in each arm",),
        try_next=(
            Advice("lower-lr", f"lr={smaller:g}"),
            Advice("warm-up"),
            Advice("clip-norm", "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)"),
        ),
        magnitude=2.0 + min(math.log10(1 + arms.peak), 20.0) if math.isfinite(arms.peak) else 30.0,
    )


def _blame(record: Record, facts: Facts, arms: Arms) -> Severity:
    script = record.facts.get("script", {})
    drifts = arms.drifts and not facts["relative_change"] > 1
    if arms.learned or drifts or script.get("clipped", False):  # the trial does not clip
        return Severity.note
    broke = not math.isfinite(arms.losses["lr"][-1]) and "loss_scale" not in script
    return Severity.broken if broke and not arms.halved else Severity.risk


def _numbers(facts: Facts, arms: Arms) -> dict[str, float | str]:
    ends = {f"loss at {arm}": losses[-1] for arm, losses in arms.losses.items()}
    return {"lr": facts["lr"], "relative_change": facts["relative_change"], **ends}


def _above_the_edge(record: Record, arms: Arms) -> Iterator[Finding]:
    sharp = record.facts.get("sharpness")
    if sharp and sharp["lr"] > sharp["limit"] and arms.fall("lr") > 0:
        yield Finding(
            Severity.note,
            f"lr {sharp['lr']:g} is above {sharp['limit']:.3g}, the limit for a quadratic loss of "
            "this curvature, and the loss falls all the same.",
            ("lr",),
            dict(sharp),
        )


@detector("G403", "missing-warmup", needs=("update", "trial"), explains=("G108",))
def missing_warmup(record: Record) -> Iterator[Finding]:
    """An adaptive optimizer whose first full steps ruin a network that gentler ones train.

    **What it looks at.** The trial of `lr-too-high`. It is the warm-up rather than the lr when the
    optimizer is adaptive (Adam's first step moves every weight by the whole lr), the first step
    changes the output by more than its own size, and either a ramp up to your lr over 14 of the 20
    steps falls by 15 % and half of what the best smaller lr does (measured), or the network has
    attention, the loss stands still rather than explodes, and lr/10 falls (likely: the ramp that a
    transformer needs is longer than a trial).

    **Why it matters.** In deep post-norm transformers the first updates all point the same way, add
    up over the depth, and saturate the attention; the loss stays at a constant prediction. The
    gradients at the start look better than those of a pre-norm network.

    **When it is wrong.** When a warm-up is written into the loop and not yet active, so that the
    optimizer shows its full lr.

    **What to try.** Linear warm-up over some hundred steps, a tenth of the lr, pre-norm, DeepNorm,
    Admin.

    **References.** Xiong 2020 (pre-norm, section 3); Liu 2020 (Admin); Huang 2020 (T-Fixup);
    Wang 2022 (DeepNorm). Measured on 12 layers with Adam 3e-3: accuracy 0.10 post-norm, 0.96
    pre-norm.
    """
    facts, arms = record.facts["update"], Arms(record.facts["trial"]["losses"])
    if not (_lr_fails(record, arms) and _wants_warmup(facts, arms)):
        return
    arm, _ = arms.lower
    yield Finding(
        Severity.risk,
        f"{facts['optimizer']}'s first step at lr {facts['lr']:g} changes the output by "
        f"{facts['relative_change']:.2g} of its size, and the loss stays at "
        f"{arms.losses['lr'][-1]:.3g}; at {arm} it falls to {arms.losses[arm][-1]:.3g}.",
        ("lr",),
        _numbers(facts, arms),
        confidence="measured" if _ramp_works(arms) else "likely",
        try_next=(
            Advice(
                "warm-up",
                "torch.optim.lr_scheduler.LinearLR(optimizer, 1e-3, total_iters=500)",
            ),
            Advice("lower-lr", f"lr={facts['lr'] / float(arm.partition('/')[2]):g}"),
            Advice("pre-norm"),
        ),
        magnitude=2.0,
    )


def _wants_warmup(facts: Facts, arms: Arms) -> bool:
    adaptive = any(name in facts["optimizer"].lower() for name in ADAPTIVE)
    if not adaptive or not facts["relative_change"] > 1:
        return False
    stands = arms.fall("lr") > -0.5 and arms.peak < 2.0
    return _ramp_works(arms) or (facts["attends"] and stands and arms.fall("lr/10") > 0)


def _ramp_works(arms: Arms, *, least: float = 0.15) -> bool:
    return arms.fall("warm-up") >= max(least, 0.5 * arms.lower[1])


@detector("G402", "lr-too-low", needs=("update", "trial"))
def lr_too_low(record: Record, *, ratio: float = 1e-7, crawl: float = 1e-5) -> Iterator[Finding]:
    """A learning rate at which nothing gets anywhere.

    **What it looks at.** The largest |dW| / |W| over the weight matrices in the first step, and the
    share of the loss that this step takes off to first order (the update times the gradient), both
    divided by 1 - momentum, which adds up steps. When both are below `crawl` = 1e-5, ten thousand
    steps would change neither by more than a tenth; this is asked only of a network that has not
    learned yet, whose loss is above half of what a constant prediction costs. Of any network it is
    asked whether no matrix moves by `ratio` = 1e-7 (both chosen by us). It is reported only when
    the loss stands still in the trial and falls by 1 % (by 5 % for a crawl) in 20 steps at an lr
    that moves weights by about 1e-2 per step, which was tried. An lr of exactly zero, and one that
    a schedule is warming up, are left alone.

    **Why it matters.** The run looks like one that cannot learn. SGD with Adam's lr is the usual
    case: 1e-6 is small there.

    **When it is wrong.** When a warm-up is set in the loop, without a scheduler, and starts that
    low. Fine-tuning with AdamW at 1e-6 moves ten thousand weights at once, and its first step
    takes far more off the loss.

    **What to try.** The lr of the trial that fell, then less.

    **References.** An update of about 1e-3 of the weight per step is customary (Karpathy).
    """
    facts, arms = record.facts["update"], Arms(record.facts["trial"]["losses"])
    higher = [arm for arm in arms.losses if arm.startswith("lr*")]
    if not higher or facts["half"] or not abs(arms.fall("lr")) < 0.001:
        return
    idle = 0 < facts["largest_ratio"] < ratio
    crawls = _crawls(facts, crawl) and not _has_learned(record)
    if arms.fall(higher[0]) < (0.01 if idle else 0.05) or not (idle or crawls):
        return
    times = float(higher[0].partition("*")[2])
    share = facts["first_fall"] / abs(facts["loss_before"]) if facts["loss_before"] else 0.0
    yield Finding(
        Severity.risk,
        f"at lr {facts['lr']:g} a step moves weights by {facts['largest_ratio']:.1g} of their size "
        f"at most, takes {share:.1g} off the loss, and it stands; at {facts['lr'] * times:.1g} it "
        f"falls from {arms.losses[higher[0]][0]:.3g} to {arms.losses[higher[0]][-1]:.3g}.",
        ("lr",),
        {"largest_ratio": facts["largest_ratio"], "share": share, **_numbers(facts, arms)},
        try_next=(Advice("higher-lr", f"lr={facts['lr'] * times:.1g}"),),
        magnitude=max(-math.log10(facts["largest_ratio"]) - 7, 0.0),
    )


def _crawls(facts: Facts, crawl: float) -> bool:
    """Whether steps like the first neither move weights nor lower the loss by a share of them."""
    once = crawl * (1 - facts["momentum"])
    falls = facts["first_fall"] >= once * abs(facts["loss_before"])
    return bool(facts["largest_ratio"] < once and not falls)


def _has_learned(record: Record, *, share: float = 0.5) -> bool:
    """Whether the loss is well below a constant prediction's, or nobody knows what that costs."""
    known = [one for one in record.facts.get("losses") or [] if one.get("constant_loss")]
    return not known or any(one["value"] < share * one["constant_loss"] for one in known)


@detector("G405", "swallowed-update", needs=("update",), explains=("G402",))
def swallowed_update(
    record: Record, *, most: float = 0.5, broken: float = 0.1
) -> Iterator[Finding]:
    """Half-precision weights that are too coarse for the steps they are given.

    **What it looks at.** For weights in float16 or bfloat16: of the elements with a gradient, the
    share that the first step changed. Less than `most` = 0.5 is a risk, less than `broken` = 0.1
    broken (chosen by us). An update below half the spacing of numbers, 2^-9 of the weight in
    bfloat16 and 2^-12 in float16, is rounded away; so are all that follow it. Weights that move
    over a trial after all (Kahan summation, stochastic rounding) are left alone.

    **Why it matters.** Gradients are healthy, nothing is NaN, and the weights stay. AdamW at 1e-5
    on bfloat16 weights of 0.05 moved none in 20 steps; in float32 all of them.

    **When it is wrong.** When a smaller lr is only a warm-up's first step.

    **What to try.** float32 weights and autocast; an optimizer with Kahan summation or stochastic
    rounding; a larger lr.

    **References.** Zamirai 2020 (bfloat16 training, section 3); CLIP #40; nanoGPT #137.
    """
    facts = record.facts["update"]
    moved = facts["moved"]
    idle = not facts["half"] or facts["warming_up"] or not facts["lr"] or facts["nonfinite"]
    if idle or not moved < most or facts.get("moved_later", 0.0) >= most:
        return
    yield Finding(
        Severity.broken if moved < broken else Severity.risk,
        f"a step at lr {facts['lr']:g} changes {moved:.1%} of the weights that have a gradient: "
        f"the others round it away ({', '.join(facts['half'])}).",
        _least_moved(record),
        {"moved": moved, "lr": facts["lr"], "dtype": ", ".join(facts["half"])},
        ruled_out=("the gradient: it is finite and not zero there",),
        try_next=(Advice("float32-weights", WIDE),),
        magnitude=6.0,
    )


def _least_moved(record: Record, *, most: int = 5) -> tuple[str, ...]:
    names = [site.name.rpartition(".")[0] for site in record.sites_of("weight")]
    moved = record.read("moved", "weight")
    ranked = sorted(zip(moved, names, strict=True), key=lambda pair: (math.isnan(pair[0]), *pair))
    return ("optimizer", *dict.fromkeys(name for _, name in ranked[:most]))


@detector("G005", "nonfinite-update", needs=("update",), explains=("G002", "G003", "G004"))
def nonfinite_update(record: Record) -> Iterator[Finding]:
    """A step that makes finite weights non-finite although the gradients are finite.

    **What it looks at.** Parameters before and after one step of your optimizer on a copy. Adam's
    eps = 1e-8 is zero in float16 (its smallest number is 6e-8), and the step divides by it where
    the second moment is zero too: NaN for a zero gradient, infinity for a small one.

    **Why it matters.** Loss and gradients were perfect, so that the lr is blamed; it happens even
    at lr = 0.

    **When it is wrong.** Not that we know: it was seen to happen.

    **What to try.** float32 weights and autocast, else eps = 1e-4 in float16.

    **References.** openai/CLIP #40, #57; Lightning #20619.
    """
    facts = record.facts["update"]
    if not facts["nonfinite"] or not facts["grads_finite"]:
        return
    names = tuple(dict.fromkeys(name.rpartition(".")[0] for name in facts["nonfinite"]))
    tiny = "torch.float16" in facts["half"] and facts["eps"] < 6e-8
    why = ""
    if tiny:
        why = f": eps = {facts['eps']:g} is zero in float16 (half precision), which ends at 6e-8"
    yield Finding(
        Severity.broken,
        f"the first step makes {len(facts['nonfinite'])} parameters non-finite, though the "
        f"gradients are finite{why}.",
        ("optimizer", *names),
        {"parameters": len(facts["nonfinite"]), "eps": facts["eps"], "lr": facts["lr"]},
        ruled_out=("the gradient: it is finite",),
        try_next=(Advice("float32-weights", WIDE), Advice("larger-eps", "eps=1e-4")),
        magnitude=10.0,
    )
