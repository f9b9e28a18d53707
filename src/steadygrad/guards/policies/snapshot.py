"""What a run needs to go on from an earlier step, kept in memory."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class Stateful(Protocol):
    """A scheduler, a GradScaler, a data loader: what gives out its state and takes it back."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Take the state up; what is returned differs from class to class."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Parameters, buffers, the optimizer's state, others' states and random states, all copied."""

    step: int
    tensors: tuple[tuple[Tensor, Tensor], ...]  # what was copied, and the copy
    optimizer: dict[str, Any]
    others: tuple[dict[str, Any], ...]
    random: dict[str, Any]

    def fits(self, optimizer: Optimizer) -> bool:
        """Whether an optimizer has the parameters that it had."""
        then = [len(one["params"]) for one in self.optimizer["param_groups"]]
        return then == [len(one["params"]) for one in optimizer.param_groups]


def held(optimizer: Optimizer, model: nn.Module | None) -> list[Tensor]:
    """The tensors a step may change: the optimizer's parameters, and the model's with buffers."""
    groups = [one for group in optimizer.param_groups for one in group["params"]]
    mine = [] if model is None else [*model.parameters(), *model.buffers()]
    return list({id(one): one for one in [*groups, *mine]}.values())


def take(
    step: int,
    optimizer: Optimizer,
    tensors: Sequence[Tensor],
    others: Sequence[Stateful],
    device: str | None,
) -> Snapshot:
    """Copy all; tensors to `device`, or where they are."""
    return Snapshot(
        step,
        tuple((one, _copied(one, device)) for one in tensors),
        _tree(optimizer.state_dict(), device),
        tuple(copy.deepcopy(one.state_dict()) for one in others),
        random_states(),
    )


def put_back(
    snapshot: Snapshot, optimizer: Optimizer, others: Sequence[Stateful], *, replay: bool
) -> None:
    """Restore what a snapshot holds, random states with `replay`; tensors stay the same objects."""
    with torch.no_grad():
        for one, kept in snapshot.tensors:
            one.detach().copy_(kept)
    optimizer.load_state_dict(copy.deepcopy(snapshot.optimizer))
    for other, state in zip(others, snapshot.others, strict=True):
        other.load_state_dict(copy.deepcopy(state))
    if replay:
        set_random_states(snapshot.random)


def random_states() -> dict[str, Any]:
    """The states of Python's, numpy's and torch's generators."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_states(states: Mapping[str, Any]) -> None:
    """Set the generators to states that `random_states` gave."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])


def _copied(tensor: Tensor, device: str | None) -> Tensor:
    kept = tensor.detach().clone()
    return kept if device is None else kept.to(device)


def _tree(state: Any, device: str | None) -> Any:  # a state_dict nests freely
    if isinstance(state, Tensor):
        return _copied(state, device)
    if isinstance(state, dict):
        return {key: _tree(value, device) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(_tree(value, device) for value in state)
    return copy.deepcopy(state)
