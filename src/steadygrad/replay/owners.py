"""Find the module that the user calls the model, and give everything in it the user's names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType, ModuleType
from typing import Any, cast

from torch import Tensor, nn

from steadygrad.probe.wrappers import unwrapped
from steadygrad.replay.tape import Entry

Named = list[tuple[str, Any]]  # variables of the script: whatever a user keeps


NO_HOLDERS = (nn.Module, type, ModuleType)
"""Kinds of variables in whose attributes no model of the user's is sought."""


@dataclass(frozen=True, slots=True)
class Whole:
    """A model that holds all called modules and free parameters of a script.

    `paths` maps id(called module) to its qualified name in `model`, `names` id(parameter) to its.
    """

    model: nn.Module
    paths: Mapping[int, str]
    names: Mapping[int, str]


def variables(frame: FrameType | None, module: Mapping[str, Any]) -> Named:
    """List the variables that are in sight: the script's own first, then those of its callees."""
    found: Named = list(module.items())
    frames = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    for one in reversed(frames):
        found += list(one.f_locals.items())
    return found


def whole(entries: Sequence[Entry], free: Sequence[Tensor], visible: Named) -> Whole:
    """Join the called modules and the free parameters into one model.

    A called module is looked for in the largest module in sight that contains it. A single owner
    is the model itself; several, or free parameters, are held in a container under their
    variables' names.
    """
    called = list({id(e.module): e.module for e in entries if e.module is not None}.values())
    sight = modules_in(visible)
    found = {id(one): one for one in (owner(root, sight) for root in called)}
    loose = []
    for tensor in free:
        holder = _holder(tensor, [*((("", one)) for one in found.values()), *sight])
        if holder is None:
            loose.append(tensor)
        else:
            found[id(holder)] = holder
    owners = _outermost(list(found.values()))
    if len(owners) == 1 and not loose:
        model = owners[0]
    else:
        model = _container(owners, loose, visible, sight)
    paths = {id(one): name for name, one in model.named_modules()}
    return Whole(model, paths, {id(p): name for name, p in model.named_parameters()})


def modules_in(visible: Named) -> list[tuple[str, nn.Module]]:
    """Modules among the variables in sight, and those that plain objects hold, with their names."""
    found = [(name, one) for name, one in visible if _is_a(one, nn.Module)]
    holders = {id(one): one for _, one in visible if not _is_a(one, NO_HOLDERS)}
    for one in holders.values():
        found += [(name, value) for name, value in _attributes(one) if _is_a(value, nn.Module)]
    return found


def _is_a(one: object, kinds: type | tuple[type, ...]) -> bool:
    """Whether this is an instance, without asking the object, which may be a proxy that warns."""
    return issubclass(type(one), kinds)


def _attributes(one: object) -> Iterator[tuple[str, Any]]:
    held = one if _is_a(one, dict) else getattr(one, "__dict__", None)
    if _is_a(held, dict):
        yield from (
            (str(name), value) for name, value in list(cast("dict[Any, Any]", held).items())
        )


def owner(root: nn.Module, sight: list[tuple[str, nn.Module]]) -> nn.Module:
    """Return the largest visible module that contains this one; wrappers are looked through."""
    best, size = root, -1
    for _, candidate in sight:
        bare = unwrapped(candidate)
        inside = list(bare.modules())
        if len(inside) > size and any(one is root for one in inside):
            best, size = bare, len(inside)
    return best


def _holder(tensor: Tensor, sight: list[tuple[str, nn.Module]]) -> nn.Module | None:
    """Return a visible module that holds this parameter, the largest one around it."""
    for _, candidate in sight:
        bare = unwrapped(candidate)
        if any(one is tensor for one in bare.parameters()):
            return owner(bare, sight)
    return None


def _outermost(owners: list[nn.Module]) -> list[nn.Module]:
    inner = {id(one) for owner in owners for one in owner.modules() if one is not owner}
    return [owner for owner in owners if id(owner) not in inner]


def _container(
    owners: Sequence[nn.Module],
    loose: Sequence[Tensor],
    visible: Named,
    sight: list[tuple[str, nn.Module]],
) -> nn.Module:
    holder = nn.Module()
    for owner in owners:
        name = next((n for n, one in sight if unwrapped(one) is owner), type(owner).__name__)
        holder.add_module(_free_name(holder, name), owner)
    for place, tensor in enumerate(loose):
        name = next(_names_of(tensor, visible), f"parameter_{place}")
        # the script has ended; a new Parameter would not be the tensor that its optimizer holds
        tensor.__class__ = nn.Parameter
        holder.register_parameter(_free_name(holder, name), cast("nn.Parameter", tensor))
    return holder


def _names_of(tensor: Tensor, visible: Named) -> Iterator[str]:
    for name, one in visible:
        if one is tensor:
            yield name
        elif _is_a(one, (list, tuple)):
            yield from (f"{name}_{place}" for place, t in enumerate(one) if t is tensor)
        elif not _is_a(one, NO_HOLDERS):
            yield from (f"{name}_{key}" for key, t in _attributes(one) if t is tensor)


def _free_name(holder: nn.Module, name: str) -> str:
    name = name.replace(".", "_") or "_"
    taken = {*holder._modules, *holder._parameters, *dir(holder)}
    while name in taken:
        name += "_"
    return name
