"""The first cause of a number that is not finite: the step is computed again, and looked at."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.optim import Optimizer

from steadygrad.core.finding import Advice, Finding, Severity
from steadygrad.core.record import record_of
from steadygrad.core.report import Report, diagnose
from steadygrad.probe.dynamo import eager
from steadygrad.probe.sandbox import buffers_put_back, unwarned
from steadygrad.replay.assemble import Heard, assemble
from steadygrad.replay.captured import CannotLook, Captured
from steadygrad.replay.owners import Named
from steadygrad.replay.randomness import kept as kept_generators
from steadygrad.replay.randomness import set_generators
from steadygrad.replay.score import Term, reached
from steadygrad.replay.tape import Tape
from steadygrad.replay.variants import (
    Guilty,
    guilty_samples,
    heals_in_float32,
    heals_without_fused_attention,
)
from steadygrad.taps.watcher import Trouble

NUMBERS = ("G001", "G002", "G003", "G004", "G005", "G006", "G007", "G009")
"""Codes of what makes a number NaN or infinite; so does the whole family of data and loss."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept of a step by reference: the tape of its loss, and where backward started."""

    tape: Tape
    roots: Sequence[tuple[Tensor, Tensor | None]]
    lost: str = ""  # why there is nothing on the tape


@dataclass(frozen=True, slots=True)
class Cause:
    """What a replay has found: findings, roots first, or why there are none."""

    findings: tuple[Finding, ...]
    why: str = ""
    captured: Captured | None = None


class Causes:
    """The first causes of a run, a few at most; each is said at once. `seconds` went to replays."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.causes: list[Cause] = []
        self.seconds = 0.0
        self._say = say
        self._told_broken = False

    @property
    def findings(self) -> list[Finding]:
        """All of them, the first step's first; a later replay may tell the same once more."""
        first: dict[object, Finding] = {}
        for one in (one for cause in self.causes for one in cause.findings):
            first.setdefault((one.code, one.where, one.evidence.get("line")), one)
        return list(first.values())

    def of(self, trouble: Trouble, kept: Kept, visible: Named) -> Cause | None:
        """Look for the cause of a step that is not finite, unless it is an old story."""
        if len(self.causes) >= REPLAYS:
            return None
        if _is_broken(trouble.optimizer):
            self._tell_broken(trouble)
            return None
        if trouble.scaled and math.isfinite(trouble.loss):
            return None  # a scaler finds its scale in this way
        begin = time.perf_counter()
        cause = _replayed(trouble, kept, visible)
        self.seconds += time.perf_counter() - begin
        self.causes.append(cause)
        self._say(_told(trouble, cause))
        return cause

    def of_exception(self, tape: Tape, step: int) -> None:
        """Look for what broke before an exception, where nothing has been found so far."""
        if not self.causes:
            try:
                self.causes.append(cause_of_exception(tape, step))
            except Exception as error:  # whatever the user's model raises when it is run again
                self.causes.append(Cause((), f"the replay failed: {error}"))

    def named_by(self, error: BaseException, step: int) -> bool:
        """Whether an exception names its own cause, which is kept: a label out of range."""
        from steadygrad._check import explained

        said = explained(error, "")
        if said is not None:
            found = tuple(replace(one, steps=(step, step)) for one in said.findings)
            self.causes.append(Cause(found))
        return said is not None

    def _tell_broken(self, trouble: Trouble) -> None:
        """Say once that the weights were broken before this step; the report says by what."""
        if not (self.causes or self._told_broken):
            self._told_broken = True
            self._say(f"step {trouble.step}: weights are NaN or infinite before it")


def _replayed(trouble: Trouble, kept: Kept, visible: Named) -> Cause:
    if kept.lost:
        return Cause((), kept.lost)
    try:
        with unwarned():  # what the step warns of has been said when it ran
            cause = first_cause(kept, trouble.optimizer, visible, trouble.step)
    except Exception as error:  # whatever the user's model raises when it is run again
        return Cause((), f"the replay failed: {type(error).__name__}: {error}")
    if cause.findings or not cause.why.startswith(AGAIN):
        return cause
    broken = not math.isfinite(trouble.loss)
    return replace(cause, findings=(unrepeated(cause.why, loss=broken, step=trouble.step),))


def _is_broken(optimizer: Optimizer) -> bool:
    """Whether weights were NaN or infinite before this step."""
    held = [p for group in optimizer.param_groups for p in group["params"]]
    return any(not bool(p.detach().isfinite().all()) for p in held if p.is_floating_point())


def _told(trouble: Trouble, cause: Cause) -> str:
    what = "loss" if not math.isfinite(trouble.loss) else "gradient"
    number = trouble.loss if what == "loss" else trouble.norm
    head = f"step {trouble.step}: the {what} is {number:g}"
    if not cause.findings:
        return f"{head}; no cause was found: {cause.why}"
    first = cause.findings[0]
    return f"{head}: {first.code} {first.name}: {first.says}"


def first_cause(kept: Kept, optimizer: Optimizer, visible: Named, step: int) -> Cause:
    """Compute the loss of a step again, as it was, and name the op that broke it.

    A copy of the model runs, and nothing is trained; generators are as they were afterwards.
    """
    cause = Cause((), "no backward pass was heard")
    for heard in _passes(kept):
        try:
            with torch.enable_grad():
                cause = looked(assemble(heard, optimizer, visible), step)
        except CannotLook as error:
            cause = Cause((), str(error))
        if cause.findings:
            return cause
    return cause


def captured_of(kept: Kept, optimizer: Optimizer, visible: Named) -> Captured:
    """What is trained in a step that is about to be made; raises CannotLook.

    The model is the user's own, the loss can be computed on it again.
    """
    why = CannotLook(kept.lost or "no backward pass was heard")
    for heard in _passes(kept):
        try:
            with torch.enable_grad():
                return assemble(heard, optimizer, visible)
        except CannotLook as error:
            why = error
    raise why


def unrepeated(why: str, *, loss: bool, step: int) -> Finding:
    """The verdict on a step that is finite when it is computed again, from the same everything."""
    what = "loss" if loss else "gradient"
    return Finding(
        Severity.broken,
        f"the {what} of step {step} was not finite and cannot be made so again ({why}): it did not "
        "come of the batch, the weights, and torch's random numbers alone.",
        ("loss",),
        confidence="possible",
        try_next=(
            Advice("deterministic", "torch.use_deterministic_algorithms(True)"),
            Advice("look-for-state", "# what the forward pass reads that is neither of these"),
        ),
        magnitude=7.0,
        steps=(step, step),
        code="G003" if loss else "G004",
        name="nonfinite-loss" if loss else "nonfinite-backward",
    )


AGAIN = "computed again"  # how a reason begins where a step could be computed, and was finite
REPLAYS = 3  # of a run: chosen by us, later trouble mostly comes of the first
MOST_PASSES = 16  # of one step that are looked into: chosen by us
DISGUISES = (
    "probability tensor contains either `inf`, `nan`",
    "to satisfy the constraint",
    "invalid numeric entries",
    "contained non-finite values",
    "contains NaN",
    "contains infinity",
    "contains inf or NaN",
    "should be between 0 and 1",
    "expects all elements of std >= 0.0",
    "underflow in dt",
    "invalid values",
    "cannot convert float NaN to integer",
    "cannot convert float infinity to integer",
)
"""What libraries raise when they meet a number that is not finite."""


def is_disguised(error: BaseException | str) -> bool:
    """Whether an exception, or what it said, may be a NaN in disguise."""
    return any(words.lower() in str(error).lower() for words in DISGUISES)


def cause_of_exception(tape: Tape, step: int) -> Cause:
    """Run the model's last call again, up to where it raised, and name what broke before."""
    from steadygrad.detectors import DETECTORS  # which a healthy run never needs
    from steadygrad.probe.nonfinite import before_exception

    entry = tape.running or tape.latest
    if entry is None or entry.module is None:
        return Cause((), "no call of a model was noted")
    model, run = entry.module, entry.run

    def again() -> object:
        set_generators(entry.rng)
        return run(*entry.args, **entry.kwargs)

    with eager(), torch.enable_grad(), kept_generators(), buffers_put_back(model.buffers()):
        facts = before_exception(model, again, entry.given())
    report = diagnose(record_of([], {"nonfinite": facts, "step": step}), DETECTORS)
    found = tuple(replace(one, steps=(step, step)) for one in _of_numbers(report))
    return Cause(found, "" if found else "everything was finite until it was raised")


def _passes(kept: Kept) -> Iterator[Heard]:
    """Each backward pass alone, those that started on a broken loss first.

    The step of an accumulation has many, and one of them is to blame.
    """
    known = [(_value(*root), *root) for root in kept.roots[:MOST_PASSES]]
    known.sort(key=lambda row: math.isfinite(row[0]))
    for value, loss, weight in known:
        heard = Heard(kept.tape, goes_on=True)
        made = kept.tape.made(loss)
        if made is None:
            heard.unseen.append("backward() started on a tensor made out of sight")
        else:
            heard.passes.append([Term(made, weight, value, reached(loss))])
        yield heard


@torch.no_grad()
def _value(loss: Tensor, weight: Tensor | None) -> float:
    return float((loss if weight is None else loss * weight).sum())


def looked(captured: Captured, step: int) -> Cause:
    """Look at a captured step for what breaks its numbers."""
    from steadygrad._check import check  # which a healthy run never needs
    from steadygrad.detectors import DETECTORS

    facts = {**captured.facts, "step": step}
    if captured.blind:
        facts["blind"] = dict(captured.blind)
    try:
        report = check(
            captured.model,
            captured.inputs,
            loss=captured.loss,
            optimizer=captured.optimizer,
            probes=False,
            facts=facts,
        )
    except (TypeError, ValueError, RuntimeError) as error:
        return Cause((), f"the step could not be computed again: {error}", captured)
    if step > 0 and report.record.facts:  # its weights are no longer those of the start
        later = [one for one in DETECTORS if not one.code.startswith("G2")]
        report = diagnose(report.record, later)
    found = [replace(one, steps=(step, step)) for one in _of_numbers(report)]
    why = "" if found else captured.blind.get("loss", f"{AGAIN}, everything is finite")
    if found:
        found[0] = _tried(found[0], captured)
    return Cause(tuple(found), why, captured)


VARIED = ("G002", "G003", "G004", "G007")
"""Codes of which it is worth a few more runs to know what heals the step."""


def _tried(found: Finding, captured: Captured) -> Finding:
    """Compute the step with one thing changed at a time, and add to a finding what that tells."""
    if found.code not in VARIED:
        return found
    with eager():
        wide = heals_in_float32(captured)
        attends = "attention" in str(found.evidence.get("op", ""))
        plain = heals_without_fused_attention(captured) if attends and not wide else None
        known = any(name.startswith("sample") for name in found.evidence)
        guilty = None
        if not (known or wide):
            guilty = guilty_samples(captured, backward=found.code == "G004")
    return told_by_variants(found, wide, plain, guilty)


def told_by_variants(
    found: Finding, wide: bool | None, plain: bool | None, guilty: Guilty | None
) -> Finding:
    """A finding with what variants of the step have told: precision, kernel, samples."""
    evidence, says = dict(found.evidence), found.says
    out, advice = list(found.ruled_out), list(found.try_next)
    if wide is not None:
        evidence["in float32"] = "finite" if wide else "not finite"
        says += "; in float32 the step is finite" if wide else ""
        out += [] if wide else ["half precision: it breaks in float32 too"]
    if plain:
        evidence["math attention"] = "finite"
        says += "; computed from its formula attention is finite: the fused kernel differs"
        patch = "with sdpa_kernel(SDPBackend.MATH):  # of torch.nn.attention\n    ..."
        advice.insert(0, Advice("math-attention", patch))
    elif plain is not None:
        out.append("the attention kernel: its formula breaks too")
    if guilty is not None:
        names = ", ".join(map(str, guilty.samples))
        evidence["samples"] = names
        which = f"sample {names}" if len(guilty.samples) == 1 else f"each of the samples {names}"
        says += f"; {which} of {guilty.of} does it alone"
    return replace(
        found, says=says, evidence=evidence, ruled_out=tuple(out), try_next=tuple(advice)
    )


def _of_numbers(report: Report) -> Iterator[Finding]:
    """Roots that break numbers, or explain what does."""
    for one in report.findings:
        breaks = one.code in NUMBERS or one.code.startswith("G6")
        if one.severity > Severity.note and (breaks or {*NUMBERS} & {*one.symptoms}):
            yield one
