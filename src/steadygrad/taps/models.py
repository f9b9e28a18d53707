"""Which models an optimizer trains, and who trains them."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from steadygrad.probe.nonfinite import broken_buffers
from steadygrad.probe.wrappers import unwrapped
from steadygrad.replay.owners import Named, modules_in, owner


def trained_by(
    optimizer: Optimizer, visible: Named, called: nn.Module | None, *, more: bool
) -> Mapping[str, nn.Module]:
    """The models that hold what an optimizer trains, by name; '' for one that is alone.

    What was called last is the model, or a part of it, if it holds all of that; else models are
    sought among the variables in sight, then everywhere. `more` says that others are known already.
    """
    wanted = {id(p) for group in optimizer.param_groups for p in group["params"]}
    sight = modules_in(visible)
    if called is not None and wanted <= {id(p) for p in called.parameters()}:
        found = [_whole(called, sight)]
    else:
        found = covering(wanted, sight) or covering(wanted, _all_modules())
    alone = len(found) == 1 and not more and not _others(found[0][1], visible)
    return {"" if alone else name: one for name, one in found}


def _whole(called: nn.Module, sight: list[tuple[str, nn.Module]]) -> tuple[str, nn.Module]:
    """The largest module in sight around what was called, in its wrapper where it has one."""
    bare = owner(called, sight)
    around = [(name, one) for name, one in sight if unwrapped(one) is bare]
    wrapped = [pair for pair in around if pair[1] is not bare]
    return next(iter(wrapped + around), (type(bare).__name__, bare))


def covering(
    wanted: set[int], sight: Sequence[tuple[str, nn.Module]]
) -> list[tuple[str, nn.Module]]:
    """The fewest modules that hold all wanted parameters, by id, the largest share first.

    Of modules that hold as many, one with the fewest others is taken, and of such the outermost.
    """
    holders = []
    for name, one in sight:
        inside = {id(p) for p in one.parameters()}
        if inside & wanted:
            holders.append((name, one, inside, sum(1 for _ in one.modules())))
    found: list[tuple[str, nn.Module]] = []
    left = set(wanted)
    while left and holders:
        name, best, inside, _ = max(holders, key=lambda h: (len(h[2] & left), -len(h[2]), h[3]))
        if not inside & left:
            break
        found.append((name, best))
        left -= inside
    return found


def _others(model: nn.Module, visible: Named) -> bool:
    """Whether another module in sight is trained, that shares nothing with this one."""
    mine = {id(p) for p in model.parameters()}
    for _, one in modules_in(visible):
        theirs = {id(p) for p in one.parameters() if p.requires_grad}
        if theirs and not theirs & mine:
            return True
    return False


def _all_modules() -> list[tuple[str, nn.Module]]:
    """Every module that is alive; it takes some tenths of a second to find them."""
    found = [one for one in gc.get_objects() if issubclass(type(one), nn.Module)]
    return [(type(one).__name__, one) for one in found]


def broken_in(models: Mapping[str, nn.Module]) -> list[dict[str, Any]]:
    """Buffers that hold something NaN or infinite, as facts."""
    found = []
    for prefix, model in models.items():
        rows = broken_buffers(unwrapped(model))
        found += [{**row, "name": f"{prefix}.{row['name']}".strip(".")} for row in rows]
    return found


def filters_nan(visible: Named) -> bool:
    """Whether a Trainer of transformers is at work that leaves broken losses out of its log."""
    hosts = [one for _, one in visible if _is_from_transformers(type(one))]
    settings = (getattr(host, "args", None) for host in hosts)
    return any(getattr(one, "logging_nan_inf_filter", False) is True for one in settings)


def _is_from_transformers(kind: type) -> bool:
    return any(base.__module__.startswith("transformers.") for base in kind.__mro__)
