"""What is read in a step of training, and how many steps become a Record.

Readings of one metric stand in an array, one number for each site of the metric's role, in the
order in which the sites became known. Sites are only ever added, so that an array may be shorter
than the sites are many: what it lacks was not read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from steadygrad.core.record import Facts, Record, Role, Site

Array = NDArray[np.float32]
Kind = Literal["step", "min", "median", "max"]

OF_STEP = (
    "loss",  # sum of the tensors on which backward passes started since the last step, unscaled
    "lr",  # the largest of the optimizer's groups
    "norm",  # of all gradients, unscaled, before clipping
    "norm_after",  # after clipping
    "max_norm",  # the threshold of the clipping
    "scale",  # of the loss, 1 without a scaler
    "skipped",  # 1 where the step was not made, else 0
    "backwards",  # number of backward passes since the last step
)
"""Metrics of an optimizer's step; each optimizer is a site of the role `step`."""

OF_WEIGHT = (
    "grad",  # norm of the gradient, unscaled, before clipping
    "weight",  # norm of the parameter before the step; sampled
    "update",  # norm of what the step changed; sampled
    "moved",  # share of the elements with a gradient that the step changed; sampled
)
"""Metrics of a parameter that an optimizer holds; `grad` is read in every step."""

OF_OUTPUT = (
    "rms",  # root mean square of the output
    "mean",
    "min",
    "max",
    "grad_rms",  # root mean square of the gradient that arrives at the output, unscaled
    "dead",  # share of units that were positive in no sample of the steps sampled so far
    "saturated",  # share of elements where the activation is flat
    "logit",  # largest attention logit
)
"""Metrics of an output of a module or an op, read in sampled steps."""

METRICS: Mapping[str, Role] = {
    **dict.fromkeys(OF_STEP, "step"),
    **dict.fromkeys(OF_WEIGHT, "weight"),
    **dict.fromkeys(OF_OUTPUT, "output"),
}
"""The role of the sites at which a metric is read."""


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """The readings of one step: arrays [sites of the metric's role] by metric; NaN is not read.

    `kind` is "step" for a step as it was, or which of the three that stand for many steps this is.
    `seconds` is the time since the run began.
    """

    step: int
    seconds: float
    read: Mapping[str, Array]
    kind: Kind = "step"


def is_sampled(row: Row) -> bool:
    """Whether weights were read too: in sampled steps, and in the first that is broken."""
    return "weight" in row.read


def record_of_rows(sites: Sequence[Site], rows: Sequence[Row], facts: Facts) -> Record:
    """Join rows into a Record: values [steps, sites, metrics]."""
    metrics = tuple(name for name in METRICS if any(name in row.read for row in rows))
    places = {role: _places(sites, role) for role in set(METRICS.values())}
    values = np.full((len(rows), len(sites), len(metrics)), np.nan, dtype=np.float32)
    for number, row in enumerate(rows):
        for name, read in row.read.items():
            if name in METRICS:
                mine = places[METRICS[name]][: len(read)]
                values[number, mine, metrics.index(name)] = read[: len(mine)]
    steps = np.array([row.step for row in rows], dtype=np.int64)
    return Record(tuple(sites), metrics, steps, values, facts)


def _places(sites: Sequence[Site], role: Role) -> NDArray[np.int64]:
    mine = [place for place, site in enumerate(sites) if site.role == role]
    return np.array(mine, dtype=np.int64)
