"""Whether the ranks of a data-parallel training still train the same network.

After DDP has reduced the gradients, their norm is the same on all ranks, and so is that of the
weights, which have only ever seen those. Each rank leaves its own in the store that the ranks have
met in, now and then, and the first looks at what has come: no collective of ours stands among the
user's, so nothing can wait for ever.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from steadygrad.taps.weights import size_of

EVERY = 50  # steps: chosen by us, one message of some bytes
FIRST = 10
CLOSE = 1e-3  # relative difference up to which norms are the same: kernels add in any order


WHAT = ("gradient norm", "norm of the weights")
Norms = tuple[float, ...]  # in the order of WHAT


@dataclass(slots=True)
class Ranks:
    """The norms that ranks have told each other. `diverged` are steps whose norms differ."""

    world: int = 1
    diverged: list[dict[str, Any]] = field(default_factory=list)  # JSON-like
    _asked: list[tuple[int, Norms]] = field(default_factory=list)
    _store: Any = None  # a Store of torch.distributed

    def meet(self, models: Mapping[str, nn.Module]) -> None:
        """Find out whether this is one rank of a training under DDP."""
        if self._store is not None or not dist.is_available() or not dist.is_initialized():
            return
        parallel = nn.parallel.DistributedDataParallel
        if dist.get_world_size() > 1 and any(isinstance(m, parallel) for m in models.values()):
            self.world = dist.get_world_size()
            self._store = dist.distributed_c10d._get_default_store()  # no public name

    def tell(self, step: int, norm: float, parameters: Sequence[Tensor]) -> None:
        """Leave the norms of a step for the others; on the first rank, look at theirs."""
        if self._store is None or step % EVERY != FIRST:
            return
        norms = (norm, size_of(parameters))
        rank = dist.get_rank()
        self._store.set(_key(step, rank), " ".join(f"{one:.9g}" for one in norms))
        if rank == 0:
            self._asked.append((step, norms))
            self.look()

    def look(self) -> None:
        """Compare what all ranks have told by now."""
        left = []
        for step, mine in self._asked:
            keys = [_key(step, rank) for rank in range(1, self.world)]
            if self._store.check(keys):
                told = [self._store.get(key).decode().split() for key in keys]
                self._compare(step, [mine, *(tuple(map(float, one)) for one in told)])
            else:
                left.append((step, mine))
        self._asked = left[-10:]

    def _compare(self, step: int, told: Sequence[Norms]) -> None:
        for name, norms in zip(WHAT, zip(*told, strict=True), strict=True):
            spread = (max(norms) - min(norms)) / max(norms) if max(norms) > 0 else 0.0
            if all(map(math.isfinite, norms)) and spread > CLOSE:
                self.diverged.append({"step": step, "name": name, "spread": spread})


def _key(step: int, rank: int) -> str:
    return f"steadygrad/norm/{step}/{rank}"
