"""Follow the gradient through time: of recurrent modules, and of modules called again and again.

A fused LSTM is one node of the graph, and every parameter's gradient looks ordinary while that of
the early inputs has vanished. So each recurrent module is run once more, alone, on the input it
was given, and the gradient of its last state is read at every time step. A module that a loop
calls is read in the traced graph: the gradient at its outputs over the number of the call.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from steadygrad.core.record import Site
from steadygrad.probe.gradients import gradients
from steadygrad.probe.subject import Readings, Subject, replayed
from steadygrad.probe.trace import Call

SAMPLES = 4  # sequences that are run again
LONGEST = 1024  # time steps that are run again, the last ones
FEWEST = 8  # steps or calls from which a slope is read
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Slope:
    """How the log-gradient falls on the way back: e-folds per step, over so many steps.

    A negative `fall` is growth. `decades` is the gradient at the first over that at the last step.
    """

    fall: float
    steps: int

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of a `time` site."""
        return {
            "time_factor": math.exp(min(-self.fall, 700.0)),
            "time_decades": -self.fall * (self.steps - 1) / math.log(10),
            "time_horizon": 1 / abs(self.fall) if self.fall else math.inf,
            "time_steps": float(self.steps),
        }


def through_time(subject: Subject) -> Readings:
    """Read time_factor, time_decades, time_horizon, time_steps, time_supervised at `time` sites.

    The factor is per step on the way back; `time_supervised` the share of steps whose output the
    loss looks at directly (a gradient of at least 1e-3 of the largest). The fact `time` lists what
    was looked at and for what reason some was not.
    """
    recurrent, skipped = _recurrent_rows(subject)
    rows = recurrent + _repeated_rows(subject)
    facts = {"time": {"looked_at": [site.name for site, _ in rows], "skipped": skipped}}
    return Readings(rows, facts)


# --- Recurrent modules -------------------------------------------------------------------------


def _recurrent_rows(
    subject: Subject,
) -> tuple[list[tuple[Site, dict[str, float]]], dict[str, str]]:
    rows, skipped, seen = [], {}, set()
    for call in subject.trace.calls:
        if not isinstance(call.module, nn.RNNBase) or call.name in seen:
            continue
        seen.add(call.name)
        sequence = sequence_of(call)
        if sequence is None:
            skipped[call.name] = "its input is not a sequence of vectors"
            continue
        if sequence.shape[0] >= FEWEST:
            with replayed(subject.rng):
                slope = recurrent_slope(call.module, sequence)
            supervised = supervised_share(subject, call, sequence.shape[0])
            row = {**slope.metrics, "time_supervised": supervised}
            row["time_travels"] = float(travels(supervised, sequence.shape[0]))
            rows.append((Site(call.name, "time", call.index, call.kind), row))
    return rows, skipped


def travels(supervised: float, steps: int) -> bool:
    """Whether the loss looks at so few steps that most of its gradient must travel through time."""
    return supervised <= max(0.1, 1.5 / steps)


def sequence_of(call: Call) -> Tensor | None:
    """Return some of the longest sequences that were given: [steps, samples, features]."""
    args, kwargs = call.inputs
    given = args[0] if args else kwargs.get("input")
    if isinstance(given, PackedSequence):
        padded, lengths = pad_packed_sequence(given)
        longest = lengths == lengths.max()
        return padded[:, longest.to(padded.device)][-LONGEST:, :SAMPLES].detach()
    if not isinstance(given, Tensor) or given.dim() not in (2, 3):
        return None
    if given.dim() == 2:
        return given.detach()[-LONGEST:, None]
    batch_first = getattr(call.module, "batch_first", False)
    steps_first = given.transpose(0, 1) if batch_first else given
    return steps_first[-LONGEST:, :SAMPLES].detach()


def recurrent_slope(module: nn.RNNBase, sequence: Tensor) -> Slope:
    """Read |d h_T / d x_t| over t in float64, of the slower direction; cotangent N(0, 1) on h_T.

    `sequence` is [steps, samples, features]. States start at zero.
    """
    alone = _alone(module)
    x = sequence.double().requires_grad_()
    given = x.transpose(0, 1) if alone.batch_first else x
    out = alone.forward(given)[0]
    out = out.transpose(0, 1) if alone.batch_first else out
    generator = torch.Generator(x.device).manual_seed(0)
    width = out.shape[-1] // (2 if alone.bidirectional else 1)
    ends = [out[-1, :, :width]] + ([out[0, :, width:]] if alone.bidirectional else [])
    slopes = []
    for place, end in enumerate(ends):
        noise = torch.randn(end.shape, generator=generator, dtype=end.dtype, device=end.device)
        (grad,) = torch.autograd.grad((end * noise).sum(), x, retain_graph=True)
        norms = _row_norms(grad.flatten(1))
        slopes.append(slope_of(norms[::-1] if place else norms))
    return max(slopes, key=lambda slope: abs(slope.fall))


def _alone(module: nn.RNNBase) -> nn.RNNBase:
    """Copy a recurrent module in float64; its forward is called directly, past all hooks."""
    bare: dict[int, Any] = {  # deepcopy's memo: hooks may hold what cannot be copied
        id(getattr(module, name)): {} for name in vars(module) if name.endswith("_hooks")
    }
    return copy.deepcopy(module, bare).double()


def slope_of(norms: Array) -> Slope:
    """Fit the slope of ln(norms) over the steps [steps], robustly: the median of paired slopes.

    Steps without a gradient (underflow, a dead unit) are left out; when hardly any is left, the
    gradient is gone within two steps.
    """
    steps = len(norms)
    places = np.flatnonzero((norms > 0) & np.isfinite(norms))
    if len(places) < 4:
        return Slope(math.log(10) * 5, steps)
    logs = np.log(norms[places])
    half = len(places) // 2
    rise, run = (one[half:] - one[: len(one) - half] for one in (logs, places))
    slopes = rise / run
    return Slope(float(np.median(slopes)), steps)


def supervised_share(subject: Subject, call: Call, steps: int) -> float:
    """Share of the time steps of a recurrent output that the loss looks at.

    Read from the gradient of the loss (or of the outputs, random cotangent) at that output: 0 when
    only the final states are used, NaN when nothing is.
    """
    sinks: list[Tensor] = [one for one in call.module.parameters() if one.requires_grad]
    sinks += subject.trace.inputs
    grads = _gradients_at(subject, call.outputs, sinks)
    for grad in grads.get(0, []):
        sizes = _per_step(grad, call, steps)
        if sizes is not None and sizes.max() > 0:
            return float((sizes >= 1e-3 * sizes.max()).mean())
    return 0.0 if grads else math.nan


def _per_step(grad: Tensor, call: Call, steps: int) -> Array | None:
    """Norm of a gradient per time step [steps]; None when this is not the sequence's gradient."""
    given = (*call.inputs[0], *call.inputs[1].values())
    packed = next((one for one in given if isinstance(one, PackedSequence)), None)
    if packed is not None:
        return _per_last_steps(grad, packed)
    if grad.dim() == 3 and getattr(call.module, "batch_first", False):
        grad = grad.transpose(0, 1)
    if grad.dim() < 2 or grad.shape[0] < steps:
        return None
    return _row_norms(grad.flatten(1))


def _per_last_steps(grad: Tensor, packed: PackedSequence) -> Array | None:
    """Norms of the longest sequence only: the first row of every time step."""
    starts = np.concatenate([[0], np.cumsum(packed.batch_sizes.numpy())[:-1]])
    if grad.dim() != 2 or grad.shape[0] != int(packed.batch_sizes.sum()):
        return None
    return _row_norms(grad[torch.as_tensor(starts)])


def _row_norms(rows: Tensor) -> Array:
    """L2 norms of the rows of [steps, elements]: [steps]."""
    norms = torch.linalg.vector_norm(rows.double(), dim=1)
    return np.asarray(norms.cpu().numpy(), dtype=np.float64)


# --- Modules that are called again and again ---------------------------------------------------


def _repeated_rows(subject: Subject) -> list[tuple[Site, dict[str, float]]]:
    calls: dict[str, list[Call]] = {}
    for call in subject.trace.calls:
        if call.outputs:
            calls.setdefault(call.name, []).append(call)
    loops = {name: each for name, each in calls.items() if len(each) >= FEWEST and _chained(each)}
    loops = {name: each for name, each in loops.items() if not _inside(name, loops)}
    if not loops:
        return []
    nodes = [call.outputs[0] for each in loops.values() for call in each]
    sinks = [p for each in loops.values() for p in each[0].module.parameters() if p.requires_grad]
    grads = _gradients_at(subject, nodes, sinks + list(subject.trace.inputs))
    rows, place = [], 0
    for name, each in loops.items():
        here = [grads.get(place + number) for number in range(len(each))]
        place += len(each)
        slope = slope_of(np.array([_norm(found) for found in here]))
        site = Site(name, "time", each[0].index, each[0].kind)
        rows.append((site, {**slope.metrics, "time_travels": 1.0}))
    return rows


def _inside(name: str, loops: dict[str, list[Call]]) -> bool:
    """Whether a loop over a module is told already by the loop over the module around it."""
    return any(name.startswith(f"{other}.") for other in loops if other != name)


def _chained(calls: list[Call]) -> bool:
    """Whether each call depends on the one before it, and owns weights: a loop, not a batch."""
    if next(calls[0].module.parameters(), None) is None:
        return False
    return all(_depends(later, earlier) for earlier, later in pairwise(calls[:4]))


def _depends(later: Call, earlier: Call, limit: int = 400) -> bool:
    """Whether an input of the later call comes from an output of the earlier one, nearby."""
    wanted = set(earlier.outputs)
    stack = list(later.given)
    seen: set[Node] = set(stack)
    while stack and len(seen) < limit:
        node = stack.pop(0)
        if node in wanted:
            return True
        for child, _ in node.next_functions:
            if child is not None and child not in seen:
                seen.add(child)
                stack.append(child)
    return False


def _norm(grads: list[Tensor] | None) -> float:
    if not grads:
        return math.nan
    parts = [float(torch.linalg.vector_norm(one.double())) for one in grads]
    return math.hypot(*parts)


def _gradients_at(
    subject: Subject, nodes: list[Node], sinks: list[Tensor]
) -> dict[int, list[Tensor]]:
    """Gradients that arrive at some nodes, by their place, in one backward pass to the sinks."""
    loss = subject.loss_value
    roots = subject.outputs if loss is None else [loss]
    roots = [one for one in roots if one.requires_grad]
    if not roots or not sinks:
        return {}
    found: dict[int, list[Tensor]] = {}

    def keep(place: int, grads: Any) -> None:  # torch calls it with a tuple of Tensor | None
        found[place] = [one for one in grads if one is not None]

    handles = [
        node.register_prehook(lambda grads, place=place: keep(place, grads))
        for place, node in enumerate(nodes)
    ]
    noise = [torch.ones_like(one) if one.numel() == 1 else subject.noise(one) for one in roots]
    try:
        gradients(roots, sinks, noise)
    finally:
        for handle in handles:
            handle.remove()
    return found
