"""Weight matrices over the sampled steps: their gradients, their sizes, and how far they move."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steadygrad.core.record import Record, Site

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Moves:
    """Readings of the weights in the steps that were sampled: arrays [sampled steps, weights].

    Biases, norms, and embeddings are left out: the first two are small against what they add to,
    of the last a step touches few rows. `ratio` is update / weight.
    """

    sites: list[Site]
    steps: NDArray[np.int64]
    grad: Floats
    weight: Floats
    update: Floats

    @property
    def ratio(self) -> Floats:
        """How far a step moves each weight, in units of its size; NaN where it has none."""
        return np.where(self.weight > 0, self.update / self.weight, np.nan)

    @property
    def late(self) -> NDArray[np.bool_]:
        """Mark the sampled steps of the later half, at least the last two."""
        half = self.steps[0] + (self.steps[-1] - self.steps[0]) // 2
        return np.asarray(self.steps >= min(half, self.steps[-2]))


def moves_of(record: Record) -> Moves | None:
    """Collect the weights' readings in the steps that were made; None for fewer than three."""
    sites = record.sites_of("weight")
    wanted = [place for place, site in enumerate(sites) if is_matrix(site)]
    weight, update, grad = (
        _finite(record.series(name, "weight")) for name in ("weight", "update", "grad")
    )
    skipped = record.series("skipped", "step")
    made = ~np.any(skipped > 0, axis=1) if skipped.size else np.ones(len(record.steps), dtype=bool)
    rows = made & np.isfinite(update).any(axis=1)
    if rows.sum() < 3 or not wanted:
        return None
    mine = [sites[place] for place in wanted]
    grad, weight, update = (read[rows][:, wanted] for read in (grad, weight, update))
    return Moves(mine, record.steps[rows], grad, weight, update)


def is_matrix(site: Site) -> bool:
    """Whether a parameter is a weight with an input and an output."""
    return len(site.shape) >= 2 and "Embedding" not in site.kind


def _finite(values: Floats) -> Floats:
    return np.where(np.isfinite(values), values, np.nan)


def middle(values: Floats) -> Floats:
    """Median over the first axis of what was read; NaN where nothing was."""
    ordered = np.sort(np.where(np.isfinite(values), values, np.nan), axis=0)  # NaN comes last
    count = np.isfinite(ordered).sum(axis=0)
    below, above = np.maximum(count - 1, 0) // 2, count // 2
    columns = np.arange(values.shape[1])
    found = (ordered[below, columns] + ordered[np.minimum(above, len(ordered) - 1), columns]) / 2
    return np.asarray(np.where(count > 0, found, np.nan), dtype=np.float64)


def owner(name: str) -> str:
    """Return the module of a parameter."""
    return name.rpartition(".")[0] or name
