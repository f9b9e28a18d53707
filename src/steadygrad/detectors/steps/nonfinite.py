"""The first step whose numbers broke, and the parameter where it was seen."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from steadygrad.core.finding import Advice, Finding, Severity, detector
from steadygrad.core.record import Record, Role
from steadygrad.detectors.numbers import poisoned

TINY = 2.0**-25  # what rounds to zero in float16, whose smallest number is 2^-24
WIDE = "model.float()  # and torch.autocast(device_type, torch.bfloat16), or float16 and GradScaler"
Kind = Literal["loss", "backward", "update"]


@dataclass(frozen=True, slots=True)
class Break:
    """The first step that was not finite: what broke in it, whether it stayed so, and where."""

    kind: Kind
    step: int
    names: tuple[str, ...]
    severity: Severity
    of: int

    def finding(self, says: str) -> Finding:
        """Say it as a symptom: the cause is an op, which only a replay of the step finds."""
        return Finding(
            self.severity,
            f"{says} This is where it was seen; the op that made it comes before.",
            self.names[:5] or ("loss",),
            {"step": float(self.step), "parameters": float(len(self.names)), "of": float(self.of)},
            steps=(self.step, self.step),
            magnitude=10.0,
        )


def _first_break(record: Record) -> Break | None:
    """Find the first break in a step that was made; None when the replay named its cause."""
    if record.facts.get("cause") or not len(record.steps):
        return None
    loss = _infinite(record, "loss", "step")
    grad, weight = (_infinite(record, name, "weight") for name in ("grad", "weight"))
    made = ~np.any(record.series("skipped", "step") > 0, axis=1)
    broken = np.asarray(made & (loss.any(axis=1) | grad.any(axis=1) | weight.any(axis=1)))
    if not broken.any():
        return None
    row = int(np.flatnonzero(broken)[0])
    kind: Kind = "update" if weight[row].any() else "loss" if loss[row].any() else "backward"
    which = weight[row] if kind == "update" else grad[row]
    sites = record.sites_of("weight")
    order = sorted(np.flatnonzero(which), key=lambda place: -sites[place].depth)
    names = tuple(sites[place].name for place in order)
    heals = row + 1 < len(broken) and not broken[row + 1 :].all()
    severity = Severity.risk if heals else Severity.broken
    return Break(kind, int(record.steps[row]), names, severity, len(sites))


def _infinite(record: Record, metric: str, role: Role) -> NDArray[np.bool_]:
    return np.asarray(np.isinf(record.series(metric, role)))


@detector("G003", "nonfinite-loss", needs=("loss",), explains=("G411", "G402", "G405"))
def nonfinite_loss(record: Record) -> Iterator[Finding]:
    """A loss that becomes infinite or NaN in the middle of a training.

    **What it looks at.** The first step that was made with a loss that is not finite, while the
    weights were finite as far as they were read. It is a risk when later steps are finite again,
    and broken when none is. Skipped steps (a loss scale that is being fitted, a guard) are left
    alone. It says nothing where a replay of the step found the cause.

    **Why it matters.** One step is enough: the weights are NaN from then on.

    **When it is wrong.** A batch without a single target has a loss of NaN and gradients of zero;
    it does no harm to the weights.

    **What to try.** `steadygrad check` with the batch of that step;
    `sg.guard(optimizer, sg.skip_nonfinite())`.

    **References.** See `steadygrad explain G002` for ops that do this.
    """
    broke = _first_break(record)
    if broke and broke.kind == "loss":
        yield broke.finding(f"the loss of step {broke.step} is not finite.")


@detector("G004", "nonfinite-backward", needs=("grad",), explains=("G411", "G402", "G405"))
def nonfinite_backward(record: Record) -> Iterator[Finding]:
    """A gradient that becomes infinite or NaN while the loss is finite.

    **What it looks at.** The first step that was made with a finite loss and a gradient that is
    not, read before clipping, since clipping by the norm spreads one NaN to all parameters. The
    parameter nearest to the loss is named first: the break lies between it and the next one that
    is finite. Skipped steps are left alone. It says nothing where a replay found the cause.

    **Why it matters.** A guard that looks at the loss does not see it.

    **When it is wrong.** Not that we know: a gradient that is not finite was applied.

    **What to try.** Look for sqrt, norms, divisions and masks behind the parameter that is named.

    **References.** pytorch #68425 (masked branches), #156212.
    """
    broke = _first_break(record)
    if broke and broke.kind == "backward":
        yield broke.finding(
            f"{len(broke.names)} of {broke.of} gradients of step {broke.step} are not finite, "
            f"nearest to the loss {broke.names[0] if broke.names else ''}, though the loss is."
        )


@detector("G005", "nonfinite-update", needs=("weight",), explains=("G003", "G004", "G411"))
def nonfinite_update(record: Record) -> Iterator[Finding]:
    """Weights that are no longer finite although every gradient before was.

    **What it looks at.** Weights that are not finite in a sampled step, before which no step that
    was made had a loss or a gradient that was not. Then the optimizer's own arithmetic broke them.
    Weights that were not finite when the watch began are only told. It says nothing where a replay
    found the cause.

    **Why it matters.** Loss and gradients were perfect, so that the lr is blamed.

    **When it is wrong.** When the weights were changed by something else than the optimizer.

    **What to try.** float32 weights and autocast; in float16 an `eps` of 1e-4.

    **References.** openai/CLIP #40, #57; Lightning #20619.
    """
    broke = _first_break(record)
    if broke and broke.kind == "update" and broke.step == record.steps[0]:
        yield broke.finding(
            f"{len(broke.names)} of {broke.of} parameters are not finite before step {broke.step}, "
            "the first that was watched: what broke them was before it."
        )
    elif broke and broke.kind == "update":
        eps, dtype = _arithmetic(record)
        says = (
            f"{len(broke.names)} of {broke.of} parameters are not finite before step {broke.step}, "
            "though all gradients before were: the optimizer's own arithmetic broke them."
        )
        evidence = {"step": float(broke.step), "parameters": float(len(broke.names))}
        cures: tuple[Advice, ...] = (Advice("float32-weights", WIDE),)
        if dtype == "float16" and eps < TINY:
            says += f" In {dtype} its eps of {eps:g} is 0, and it divides 0 by 0."
            cures = (Advice("larger-eps", "eps=1e-4"), *cures)
        yield replace(
            broke.finding(says),
            says=says,
            evidence={**evidence, "eps": eps, "weights": dtype},
            try_next=cures,
        )


def _arithmetic(record: Record) -> tuple[float, str]:
    """The smallest eps of an optimizer, and the narrowest type of the weights."""
    known = record.facts.get("optimizers") or [{}]
    eps = min((float(one.get("eps", math.nan)) for one in known), default=math.nan)
    dtypes = {str(dtype) for one in known for dtype in one.get("dtypes", ())}
    narrow = [one for one in ("float16", "bfloat16", "float32") if one in dtypes]
    return eps, narrow[0] if narrow else "unknown"


@detector("G009", "poisoned-buffer", needs=("buffers",))
def poisoned_buffer(record: Record) -> Iterator[Finding]:
    """A buffer, such as a batch norm's running mean, that the training has made NaN or infinite.

    **What it looks at.** Every buffer of the watched models when a report is asked for, while their
    weights are finite. One whose broken values are all -inf is a mask, unless it holds running
    statistics.

    **Why it matters.** Training uses the statistics of the batch and looks fine, evaluation is NaN.
    A step that is left out, by a GradScaler or by hand, wrote to the buffers all the same, and no
    number of clean batches heals them.

    **When it is wrong.** A buffer of +inf or NaN that is never read, or meant as a mark.

    **What to try.** Reset the statistics; look at the batch before the model does.

    **References.** pytorch #90342, #88474, #115500.
    """
    weights = record.series("weight", "weight")
    read = weights[~np.isnan(weights).all(axis=1)] if weights.size else weights
    if not len(read) or not np.isinf(read[-1]).any():
        yield from poisoned(record.facts["buffers"])
