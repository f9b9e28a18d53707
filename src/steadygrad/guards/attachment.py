"""A guard at its post: attached to an optimizer's step by its public hooks."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from steadygrad.guards.buffers import Buffers
from steadygrad.guards.gradients import Decision, Gradients, checked, divided, total_of
from steadygrad.guards.mailbox import Mailbox, Row
from steadygrad.guards.mechanism import (
    Carried,
    Plan,
    carry_out,
    divide,
    divide_each,
    takes_divisor,
)
from steadygrad.guards.names import names_of
from steadygrad.guards.nesting import is_nested
from steadygrad.guards.norms import Reader
from steadygrad.guards.number import Number, Truth, any_of, either, is_finite
from steadygrad.guards.policies.stop import TrainingStopped
from steadygrad.guards.policy import Attached, Event, Policy, Surroundings
from steadygrad.guards.readers import reader_of
from steadygrad.guards.refusals import mark

SUSPECTS = 3  # named in an event


@dataclass(slots=True)
class Judged:
    """One step under judgment: what was seen, what each policy wants, what comes of it."""

    seen: Gradients  # as they came, unscaled
    now: Gradients  # as they will be used
    plan: Plan
    overflowed: bool = False
    threshold: Number = float("inf")
    acted: list[Truth] = field(default_factory=list)  # for each policy


class Attachment:
    """Hooks on one optimizer, and the policies behind them."""

    def __init__(
        self,
        optimizer: Optimizer,
        policies: Sequence[Policy],
        model: nn.Module | None,
        *,
        strict: bool,
        keep: Callable[[Event], None],
    ) -> None:
        reader_of(optimizer, model)  # says at once what it lacks; layouts may change until a step
        self.optimizer, self.policies, self.model = optimizer, tuple(policies), model
        self.strict = strict
        self.steps = 0
        self.skipped: Truth = False  # whether the last step was
        self.latest: Judged | None = None  # the last step, for who watches too
        self._keep = keep
        self._fused = takes_divisor(optimizer)
        self._buffers = Buffers(model) if model is not None else None
        self._mailbox = Mailbox()
        self._carried: Carried | None = None
        self._judged: Judged | None = None
        self._faulty: set[str] = set()
        self._known: tuple[object, Reader, list[str]] | None = None
        self._reads = all(  # whether numbers may be read without waiting for a device
            one.device.type == "cpu" for group in optimizer.param_groups for one in group["params"]
        )
        for policy in self.policies:
            if isinstance(policy, Attached):
                policy.attach(Surroundings(optimizer, model))  # may refuse
        self._handles = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]
        self.active = True
        mark(self.policies, self)

    def remove(self) -> None:
        """Take the hooks away and leave the optimizer as it was."""
        self._undo()
        self.active = False
        for handle in self._handles:
            handle.remove()

    def flush(self) -> None:
        """Wait for what is still on its way from a device."""
        self._deliver(wait=True)

    def accept_buffers(self) -> None:
        """Take the model's buffers as they are for those of the last step."""
        if self._buffers is not None:
            self._buffers.accept()

    # --- Before the step ---

    def _before(
        self, _: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if is_nested(self.optimizer):
            return None
        self._undo()  # a step that raised did not come to its end
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._judge()
            return None

        def judged() -> Any:  # whatever the user's closure returns
            loss = closure()
            self._judge()
            return loss

        if len(args) > 1:
            return (args[0], judged, *args[2:]), kwargs
        return args, {**kwargs, "closure": judged}

    @torch.no_grad()
    def _judge(self) -> None:
        try:
            reader, names = self._reader()
            if not reader.groups and not any(one.grad is not None for one in reader.parameters):
                return  # with groups, other ranks may have some and wait for this one
            judged = self._decided(reader, names)
            self._judged = judged
            self._carried = Carried(self.optimizer)  # known before anything is changed
            carry_out(self._carried, reader, judged.plan, fused=self._fused)
        except Exception as error:  # a fault of ours must not stop the user's training
            self._undo()
            self._fault("the guard", error)

    def _reader(self) -> tuple[Reader, list[str]]:
        groups = self.optimizer.param_groups
        key = [(id(one["params"]), len(one["params"]), one.get("fused")) for one in groups]
        if self._known is None or self._known[0] != key:  # a group was added, a state was loaded
            self._fused = takes_divisor(self.optimizer)
            names = names_of(self.optimizer, self.model)
            self._known = (key, reader_of(self.optimizer, self.model), names)
        return self._known[1], self._known[2]

    def _decided(self, reader: Reader, names: list[str]) -> Judged:
        given, amp_skips = self._amp()
        norms, total, overflowed = _look(reader, read=self._reads)
        scaled = isinstance(given, Tensor) or given != 1.0
        if scaled:
            norms, total = norms / given, total / given
        seen = Gradients(names, reader.parameters, norms, total, is_finite(total))
        judged = Judged(seen, seen, Plan(given, given, amp_skips=amp_skips), overflowed)
        judged.acted = [self._heard(policy, judged, reader) for policy in self.policies]
        return judged

    def _heard(self, policy: Policy, judged: Judged, reader: Reader) -> Truth:
        """Let one policy decide; return whether it acted."""
        if policy.name in self._faulty:
            return False
        try:
            decision = checked(policy.decide(judged.now), len(reader.parameters))
            return self._take(judged, decision, reader)
        except Exception as error:  # a policy may be the user's own
            self._fault(policy.name, error)
            return False

    def _take(self, judged: Judged, decision: Decision, reader: Reader) -> Truth:
        """Add one policy's decision to the plan; return whether that skips or clips."""
        plan, before = judged.plan, judged.now.total
        plan.skip = any_of(plan.skip, decision.skip)
        plan.lr *= decision.lr
        plan.divide = plan.divide * decision.divide
        if decision.divide_each is not None:
            divide_each(reader, decision.divide_each)
        judged.now = divided(judged.now, decision)
        if decision.rewrite is not None:
            self._rewrite(judged, decision, reader)
        judged.threshold = _smaller(judged.threshold, decision.threshold)
        return any_of(decision.skip, _fell(judged.now.total, before))

    def _rewrite(self, judged: Judged, decision: Decision, reader: Reader) -> None:
        """Change gradients in place: unscaled, divided by what was decided so far, then read."""
        plan = judged.plan
        if isinstance(plan.divide, Tensor) or plan.divide != 1.0:
            divide(reader.grads(), plan.divide)
            plan.divide = 1.0
        if decision.rewrite is not None:
            decision.rewrite(judged.now)
        norms, total, _ = _look(reader, read=self._reads)
        judged.now = replace(judged.now, norms=norms, total=total)

    def _amp(self) -> tuple[Number, Truth]:
        """The scale that a GradScaler left on the gradients, and whether it skips this step."""
        if not self._fused:
            return 1.0, False
        attributes = vars(self.optimizer)
        scale, found = attributes.get("grad_scale"), attributes.get("found_inf")
        given = self._number(scale) if scale is not None else 1.0
        return given, (self._number(found) > 0 if found is not None else False)

    def _number(self, value: Tensor) -> Number:
        return value.item() if self._reads else value.double().reshape(())

    # --- After the step ---

    def _after(self, *_: object) -> None:
        if is_nested(self.optimizer):
            return
        judged = self.latest = self._judged
        self._undo()
        self.steps += 1
        if judged is None:
            self.skipped = False
            return
        self.skipped = any_of(judged.plan.skip, judged.plan.amp_skips)
        if self._buffers is not None:
            self._buffers.settle(self.skipped)
        step = self.steps - 1
        if isinstance(judged.now.total, Tensor):
            self._mailbox.post(step, _packed(judged, self.skipped))
        else:
            self._observed(_event(step, judged, self._names(judged.acted)))
        self._deliver()

    def _deliver(self, *, wait: bool = False) -> None:
        for step, row in self._mailbox.arrived(wait=wait):
            self._observed(_unpacked(step, row, [p.name for p in self.policies], self._reader()[1]))

    def _observed(self, event: Event) -> None:
        self._keep(event)
        stop = None
        for policy in self.policies:
            if policy.name in self._faulty:
                continue
            try:
                policy.observe(event)
            except TrainingStopped as error:
                stop = error  # the others hear of the step first
            except Warning:  # the user has made errors of warnings
                raise
            except Exception as error:  # a policy may be the user's own
                self._fault(policy.name, error)
        if stop is not None:
            raise stop

    def _names(self, acted: Sequence[Truth]) -> tuple[str, ...]:
        return tuple(p.name for p, did in zip(self.policies, acted, strict=True) if bool(did))

    def _undo(self) -> None:
        if self._carried is not None:
            self._carried.undo()
        self._carried = self._judged = None

    def _fault(self, who: str, error: Exception) -> None:
        """Report a fault once and go on without; with `strict`, raise it."""
        if self.strict:
            raise error
        if who not in self._faulty:
            self._faulty.add(who)
            warnings.warn(
                f"steadygrad: {who} failed and steps aside for the rest of the run, in which the "
                f"others go on: {type(error).__name__}: {error}",
                RuntimeWarning,
                stacklevel=2,
            )


# --- Norms -------------------------------------------------------------------------------------


def _look(reader: Reader, *, read: bool) -> tuple[Tensor, Number, bool]:
    """Norms, their total, and whether finite gradients overflowed: then the sums are in float64.

    On a device a second look would wait for the first: an overflow there counts as not finite.
    """
    norms = reader.norms()
    total = total_of(norms, read=read)
    if isinstance(total, Tensor) or is_finite(total):
        return norms, total, False
    exact = reader.norms(double=True)
    peak = float(exact.max())
    total = peak * total_of(exact / peak, read=True) if is_finite(peak) else peak
    return exact, total, bool(is_finite(total))


def _smaller(one: Number, other: Number) -> Number:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return either(torch.as_tensor(one < other), one, other)
    return min(one, other)


def _fell(now: Number, before: Number, *, by: float = 1e-9) -> Truth:
    """Whether the total norm became smaller by more than rounding."""
    return now < before * (1 - by)


# --- Events ------------------------------------------------------------------------------------


def _event(step: int, judged: Judged, by: tuple[str, ...]) -> Event:
    """The event of a step whose numbers are on the host."""
    norms = judged.seen.norms.numpy()
    skipped = bool(judged.plan.skip) or bool(judged.plan.amp_skips)
    row = (judged.seen.total, judged.now.total, float(skipped), judged.threshold)
    if judged.plan.amp_skips:
        by = ("scaler",)
    return _of_numbers(step, row, by, judged.seen.names, norms, overflowed=judged.overflowed)


def _packed(judged: Judged, skipped: Truth) -> Tensor:
    """Everything an event needs as one float64 vector: 5 numbers, a flag a policy, the norms."""
    device = judged.seen.norms.device
    head = (judged.seen.total, judged.now.total, skipped, judged.plan.amp_skips, judged.threshold)
    numbers = [
        torch.as_tensor(one, device=device).double().reshape(1) for one in (*head, *judged.acted)
    ]
    return torch.cat([*numbers, judged.seen.norms])


def _unpacked(step: int, row: Row, policies: Sequence[str], names: Sequence[str]) -> Event:
    norm, after, skipped, amp_skips, threshold = row[:5].tolist()
    flags = row[5 : 5 + len(policies)]
    by = tuple(name for name, did in zip(policies, flags, strict=True) if did)
    by = ("scaler",) if amp_skips else by
    return _of_numbers(step, (norm, after, skipped, threshold), by, names, row[5 + len(policies) :])


def _of_numbers(
    step: int,
    row: tuple[Any, ...],
    by: tuple[str, ...],
    names: Sequence[str],
    norms: Row,
    *,
    overflowed: bool = False,
) -> Event:
    norm, after, skipped, threshold = (float(one) for one in row)
    clipped = not skipped and bool(_fell(after, norm))
    suspects = _suspects(names, norms) if skipped or clipped or not math.isfinite(norm) else ()
    return Event(
        step, norm, after, threshold, clipped, bool(skipped), by, suspects, overflowed, norms
    )


def _suspects(names: Sequence[str], norms: Row) -> tuple[tuple[str, float], ...]:
    """The first parameter that is not finite, or those with the largest share of the square."""
    peak = float(norms.max(initial=0.0))
    if not math.isfinite(peak):
        return ((names[int(np.argmin(np.isfinite(norms)))], float("nan")),)
    if peak == 0:
        return ()
    shares = np.square(norms / peak)
    shares /= shares.sum()
    most = np.argpartition(-shares, min(SUSPECTS, len(shares)) - 1)[:SUSPECTS]
    ranked = most[np.argsort(-shares[most])]
    return tuple((names[int(place)], float(shares[place])) for place in ranked)
