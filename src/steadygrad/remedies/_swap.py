"""Find the activations between layers, and put others in their place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from steadygrad.remedies._parts import Function, Part, fed_by, parts_of
from steadygrad.remedies._patch import carry_out, listed
from steadygrad.remedies.remedy import Change, Scene, Unfit

GATING = ("Sigmoid", "Hardsigmoid", "Tanh", "LogSigmoid")


@dataclass(frozen=True, slots=True)
class Other:
    """An activation to put in: the code that makes its module, and the name of its class.

    `function` is called instead of an activation that is written as a function; None where there
    can be none. `each` is a line about the module `name` that follows its making.
    """

    make: str
    kind: str
    function: Function | None = None
    each: str = ""


def swapped(scene: Scene, other: Other, also: str = "") -> Change:
    """Put an activation in the place of each that stands between layers; carry out `also` then.

    Activations of its kind stay, and so do those that no layer takes in (outputs) and those whose
    output another signal multiplies (gates).
    """
    calls = [part for part in parts_of(scene) if part.kind == "activation"]
    names = _aliases(scene.model, _modules(calls, other.kind, known=scene.loss is not None))
    functions = _functions(calls, names, other.kind) if other.function is not None else []
    if not names and not functions:
        said = f"other than {other.kind} " if other.kind else ""
        raise Unfit(f"No activation {said}stands between two layers where it could be swapped.")
    patch = "\n".join([*(_lines(names, other) if names else []), *([also] if also else [])])
    carry_out(scene, patch)
    notes = [f"# in the forward pass: {one}(x) -> {other.make}(x)" for one in _spelled(functions)]
    return Change(
        "\n".join([*([patch] if patch else []), *notes]),
        functions={one: _standing_in(other.function, one) for one in functions if other.function},
        imitates=bool(functions),
    )


def _modules(calls: Sequence[Part], kind: str, *, known: bool) -> list[str]:
    """Modules of which every call may be swapped; `known` says whether they were seen at work."""
    bad = {part.name for part in calls if not _is_between(part)}
    found = []
    for part in calls:
        mine = type(part.subject).__name__
        guessed = not known and mine in GATING
        if part.name and part.name not in bad and mine != kind and not guessed:
            found.append(part.name)
    return list(dict.fromkeys(found))


def _aliases(model: nn.Module, names: Sequence[str]) -> list[str]:
    """The names of some modules, and all others under which the same modules stand."""
    meant = {id(model.get_submodule(name)) for name in names}
    everything = model.named_modules(remove_duplicate=False)
    return [name for name, module in everything if id(module) in meant]


def _functions(calls: Sequence[Part], names: Sequence[str], kind: str) -> list[Function]:
    """Functions of which every call may be swapped, those within modules that are swapped aside."""
    kept = [part for part in calls if part.name and part.name not in names]
    written = [part for part in calls if not part.name]
    bad = {function for part in kept for function in part.called}
    bad |= {one for part in written if not _is_between(part) for one in part.called}
    wanted = [one for part in written for one in part.called]
    return [one for one in dict.fromkeys(wanted) if one not in bad and _kind(one) != kind]


def _is_between(part: Part) -> bool:
    """Whether a layer takes in what this activation puts out, and nothing multiplies it."""
    taken_in = any(one.kind == "layer" for one in fed_by(part))
    return taken_in and bool(part.before) and not part.gate


def _kind(function: Function) -> str:
    """The name of the module class that does what a function does: relu_ is ReLU."""
    plain = function.__name__.rstrip("_").replace("_", "").lower()
    return next((name for name in dir(nn) if name.lower() == plain), plain)


def _lines(names: Sequence[str], other: Other) -> list[str]:
    return [
        f"for name in {listed(names)}:",
        '    parent, _, child = name.rpartition(".")',
        f"    setattr(model.get_submodule(parent), child, {other.make})",
        *([f"    {other.each}"] if other.each else []),
    ]


def _spelled(functions: Sequence[Function]) -> list[str]:
    return sorted({function.__name__ for function in functions})


def _standing_in(function: Function, replaced: Function) -> Function:
    """The function under the arguments of the one it replaces, in place where that is."""

    def activation(input: Any, *args: Any, **settings: Any) -> Any:
        written = any(one is True for one in args) or settings.get("inplace")
        if written or replaced.__name__.endswith("_"):
            return input.copy_(function(input.clone()))
        return function(input)

    return activation
