"""A step on disk: its batch, its weights, and its random numbers, to be computed again later."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from steadygrad.core.story import TENSORS
from steadygrad.probe.tree import map_tensors
from steadygrad.replay.captured import CannotLook, Captured
from steadygrad.replay.randomness import Generators
from steadygrad.replay.score import Score
from steadygrad.replay.tape import Entry

LARGEST = 100 * 2**20  # bytes of weights that are kept: chosen by us; the batch is kept always


@dataclass(frozen=True, slots=True)
class Incident:
    """What is kept of a step: tensors by name.

    `input.E.T` is the T-th tensor given to the E-th call, `rng.E` the generator before it;
    `parameter.NAME` and `buffer.NAME` are the model's.
    """

    tensors: Mapping[str, Tensor]

    def save(self, directory: Path) -> None:
        """Write into a directory; nothing in the file is code."""
        save_file(dict(self.tensors), directory / TENSORS)

    @property
    def whole(self) -> bool:
        """Whether the weights are there."""
        return any(name.startswith("parameter.") for name in self.tensors)


def incident_of(captured: Captured) -> Incident:
    """Copy what is needed to compute a captured step again."""
    kept: dict[str, Tensor] = {}
    score = score_of(captured)
    for number, entry in enumerate(() if score is None else score.entries):
        kept[f"rng.{number}"] = entry.rng.torch[0]
        for place, tensor in _free(entry):
            kept[f"input.{number}.{place}"] = tensor
    held = dict(_held(captured.model))
    size = sum(one.numel() * one.element_size() for one in held.values())
    kept |= held if size <= LARGEST else {}
    return Incident({name: _apart(one) for name, one in kept.items() if _is_plain(one)})


def read(directory: Path) -> Incident:
    """Read an incident, or raise CannotLook."""
    file = directory / TENSORS
    if not file.is_file():
        raise CannotLook(
            f"expected an incident with {TENSORS}, got {directory}: `steadygrad run` leaves them "
            "in runs/<run>/incidents/<step>"
        )
    try:
        return Incident(load_file(file))
    except (SafetensorError, OSError, ValueError) as error:
        raise CannotLook(
            f"expected safetensors in {file}, got what cannot be read: {error}"
        ) from None


def restored(captured: Captured, incident: Incident) -> Captured:
    """The step of an incident, on a model that the script has just made.

    Raises CannotLook where the script computes its loss in another way than it did then.
    """
    score = score_of(captured)
    if score is None:
        raise CannotLook(f"the loss could not be captured: {captured.blind.get('loss', 'no loss')}")
    _load(captured.model, incident)
    entries = _replaced(score, incident)
    again = replace(score, entries=entries, terms=score.terms)
    return replace(captured, loss=again.play, inputs=None)


def score_of(captured: Captured) -> Score | None:
    """The score behind a captured loss."""
    found = getattr(captured.loss, "__self__", None)
    return found if isinstance(found, Score) else None


def _replaced(score: Score, incident: Incident) -> list[Entry]:
    """The same calls with the tensors of the incident."""
    entries = []
    for number, entry in enumerate(score.entries):
        swap = {}
        for place, tensor in _free(entry):
            kept = incident.tensors.get(f"input.{number}.{place}")
            if kept is None or kept.dim() != tensor.dim():
                raise CannotLook(
                    "expected the script to compute its loss as it did in the incident, got other "
                    f"calls (the {number + 1}th is {getattr(entry.run, '__name__', 'a module')}): "
                    "give it the arguments of that run"
                )
            swap[id(tensor)] = kept.to(tensor.device)
        args, kwargs = map_tensors((entry.args, entry.kwargs), partial(_swapped, swap))
        rng = incident.tensors.get(f"rng.{number}")
        states = entry.rng if rng is None else Generators([rng])
        entries.append(replace(entry, args=args, kwargs=kwargs, rng=states))
    return entries


def _swapped(swap: Mapping[int, Tensor], tensor: Tensor) -> Tensor:
    return swap.get(id(tensor), tensor)


def _free(entry: Entry) -> Iterator[tuple[int, Tensor]]:
    """Tensors given to a call that are data: neither made by another call nor trained."""
    for place, tensor in enumerate(entry.given()):
        if id(tensor) not in entry.links and not tensor.requires_grad:
            yield place, tensor


@torch.no_grad()
def _load(model: nn.Module, incident: Incident) -> None:
    for name, one in _held(model):
        kept = incident.tensors.get(name)
        if kept is None or kept.shape != one.shape:
            raise CannotLook(
                f"expected the model of the incident, got one whose {name} is {list(one.shape)}: "
                "give the script the arguments of that run"
            )
        one.copy_(kept)


def _held(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        yield f"parameter.{name}", parameter
    for name, buffer in model.named_buffers():
        yield f"buffer.{name}", buffer


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_complex() and not tensor.is_meta


def _apart(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()
