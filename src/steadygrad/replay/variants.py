"""A broken step once more, with one thing changed: what heals it tells what it came of."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from steadygrad.probe.tree import map_tensors
from steadygrad.replay.captured import Captured
from steadygrad.replay.incident import score_of
from steadygrad.replay.score import Score
from steadygrad.replay.tape import Entry

HALF = (torch.float16, torch.bfloat16)
MOST = 3  # samples that are named: of more, the batch as a whole is to blame


@dataclass(frozen=True, slots=True)
class Guilty:
    """Samples of which each alone breaks a step, of so many in the batch."""

    samples: tuple[int, ...]
    of: int


def heals_in_float32(captured: Captured) -> bool | None:
    """Whether the step is finite with everything in float32; None where nothing is half."""
    score = score_of(captured)
    if score is None or not (_is_half(captured.model) or any(map(_runs_half, score.entries))):
        return None
    wide = [replace(_with(entry, _widened), autocast=()) for entry in score.entries]
    return _is_finite(replace(score, entries=wide), copy.deepcopy(captured.model).float())


def heals_without_fused_attention(captured: Captured) -> bool | None:
    """Whether the step is finite when attention is computed from its formula."""
    score = score_of(captured)
    if score is None:
        return None
    return _is_finite(score, copy.deepcopy(captured.model), sdpa_kernel(SDPBackend.MATH))


def guilty_samples(captured: Captured, *, backward: bool) -> Guilty | None:
    """The samples that break the step alone, by bisection; None where no few of them do.

    With `backward` a step is broken when its gradients are, else when its loss is.
    """
    score = score_of(captured)
    size = 0 if score is None else _batch_size(score)
    if score is None or size < 2:
        return None

    model = copy.deepcopy(captured.model)

    def breaks(start: int, end: int) -> bool:
        part = [_with(entry, _rows_of(entry, size, start, end)) for entry in score.entries]
        return _is_finite(replace(score, entries=part), model, backward=backward) is False

    found = _bisected(breaks, 0, size)
    return Guilty(tuple(found), size) if found and len(found) <= min(MOST, size // 2) else None


def _bisected(breaks: Callable[[int, int], bool], start: int, end: int) -> list[int]:
    """The samples that break, one more than `MOST` at most; the whole is known to."""
    if end - start == 1:
        return [start]
    middle, found = (start + end) // 2, list[int]()
    for one, other in ((start, middle), (middle, end)):
        if len(found) <= MOST and breaks(one, other):
            found += _bisected(breaks, one, other)
    return found[: MOST + 1]


def _is_finite(
    score: Score,
    model: nn.Module,
    within: AbstractContextManager[object] | None = None,
    *,
    backward: bool = True,
) -> bool | None:
    """Whether loss and gradients are finite; None where the step cannot be computed like this."""
    try:
        with within or nullcontext(), torch.set_grad_enabled(backward):
            loss = score.play(model)
            if not (finite := bool(loss.isfinite().all())) or not backward:
                return finite
            held = [one for one in model.parameters() if one.requires_grad]
            grads = torch.autograd.grad(loss, held, allow_unused=True) if loss.grad_fn else ()
    except Exception:  # a batch norm of one sample, an op that refuses a dtype: nothing is learnt
        return None
    return all(bool(one.isfinite().all()) for one in grads if one is not None)


def _with(entry: Entry, change: Callable[[Tensor], Tensor]) -> Entry:
    """The same call with its data changed; what other calls have made stays as it is."""
    data = {id(t) for t in entry.given() if id(t) not in entry.links and not t.requires_grad}
    args, kwargs = map_tensors(
        (entry.args, entry.kwargs), lambda t: change(t) if id(t) in data else t
    )
    return replace(entry, args=args, kwargs=kwargs)


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in HALF else tensor


def _rows_of(entry: Entry, size: int, start: int, end: int) -> Callable[[Tensor], Tensor]:
    def rows(tensor: Tensor) -> Tensor:
        mine = entry.fresh.get(id(tensor), tensor)
        return mine[start:end] if mine.dim() and len(mine) == size else mine

    return rows


def _batch_size(score: Score) -> int:
    """The length of what the first call of a module was given first; 0 where that is no batch."""
    calls: Sequence[Entry] = [one for one in score.entries if one.module is not None]
    given = [one for one in calls[0].given() if one.dim()] if calls else []
    return len(given[0]) if given else 0


def _is_half(model: nn.Module) -> bool:
    return any(one.dtype in HALF for one in model.parameters())


def _runs_half(entry: Entry) -> bool:
    return bool(entry.autocast) or any(one.dtype in HALF for one in entry.given())
