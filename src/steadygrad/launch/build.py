"""Load what a user's function builds: `pkg.mod:build` or `file.py:build`."""

from __future__ import annotations

import importlib
import importlib.util
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from steadygrad.core.nearest import meant
from steadygrad.launch.spec import tensor_of
from steadygrad.probe.garbage import watched
from steadygrad.probe.tree import Tree
from steadygrad.probe.values import compare_builds
from steadygrad.replay.captured import CannotLook, Captured, UsersError

RETURNS = "a Module, (Module, inputs) or (Module, inputs, loss)"


def built(target: str, described: Sequence[str], seed: int) -> Captured:
    """Build a model, twice under one seed, with its inputs and loss.

    The fact `builds` names parameters that differ between the builds (`differing`), and those that
    were made of `torch.empty` and never filled (`filled`: by us, with NaN).
    """
    build = load(target)
    with watched() as garbage:
        first = _build(target, build, seed)
    model = _model_of(target, first)
    left = garbage.left()
    builds = {"filled": [name for name, one in model.named_parameters() if id(one) in left]}
    if not isinstance(build, nn.Module):
        builds["differing"] = compare_builds(model, _model_of(target, _build(target, build, seed)))
    parts = first if isinstance(first, tuple) else (model,)
    inputs, loss = (*parts[1:], None, None)[:2]
    if described:
        inputs = _inputs_of(described)
    if inputs is None and loss is None:
        raise CannotLook(
            f"expected {target} to return (Module, inputs), got a Module alone: add "
            '--input "f32[8,3,224,224]" (its dtype and sizes; repeat it for each argument)'
        )
    return Captured(model, loss, inputs, None, {"builds": builds})


def load(target: str) -> Any:  # whatever the user named
    """Import the module or file of `module:attribute` and return the attribute."""
    place, _, attribute = target.rpartition(":")
    with users_code():
        module = _from_file(place) if place.endswith(".py") else _from_path(place)
    found: Any = module
    for part in attribute.split("."):
        if part not in dir(found):
            raise CannotLook(
                f"expected {place} to define {attribute}, it does not{meant(part, dir(found))}"
            )
        found = getattr(found, part)
    return found


@contextmanager
def users_code() -> Iterator[None]:
    """Tell the user's exceptions from ours: what is raised in the block is the user's."""
    try:
        yield
    except (CannotLook, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise UsersError from error


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed all generators, as a script would that wants to be repeatable."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    yield


def _build(target: str, build: Any, seed: int) -> Any:
    if isinstance(build, nn.Module):
        return build
    if not callable(build):
        raise CannotLook(
            f"expected {target} to be a function or a Module, got {type(build).__name__}"
        )
    with users_code(), seeded(seed):
        return build()


def _model_of(target: str, made: Any) -> nn.Module:
    model = made[0] if isinstance(made, tuple) and 1 <= len(made) <= 3 else made
    if not isinstance(model, nn.Module):
        raise CannotLook(f"expected {target} to return {RETURNS}, got {_described(made)}")
    if isinstance(made, tuple) and len(made) == 3 and not callable(made[2]):
        raise CannotLook(
            f"expected the loss of {target} to be a function of the model, got "
            f"{type(made[2]).__name__}: return (model, inputs, lambda m: loss_fn(m(x), y))"
        )
    return model


def _described(made: object) -> str:
    if isinstance(made, tuple):
        return f"({', '.join(type(one).__name__ for one in made)})"
    return type(made).__name__


def _inputs_of(described: Sequence[str]) -> Tree:
    if len(described) == 1 and "[" not in described[0] and ":" in described[0]:
        make: Callable[[], Tree] = load(described[0])
        with users_code():
            return make()
    return tuple(tensor_of(one) for one in described)


def _from_file(place: str) -> ModuleType:
    path = Path(place)
    if not path.is_file():
        raise CannotLook(f"expected a file, got {place}, which does not exist{near(path)}")
    specification = importlib.util.spec_from_file_location(path.stem, path)
    if specification is None or specification.loader is None:
        raise CannotLook(f"expected a Python file, got {place}")
    module = importlib.util.module_from_spec(specification)
    sys.path.insert(0, str(path.resolve().parent))
    sys.modules[path.stem] = module
    specification.loader.exec_module(module)
    return module


def _from_path(place: str) -> ModuleType:
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{place}.".startswith(f"{error.name}."):
            raise
        raise CannotLook(
            f"expected an importable module, got {place}: no module named {error.name} in "
            f"{Path.cwd().name}/ or the installed packages"
        ) from None


def near(path: Path) -> str:
    """Name a file that is close to a missing one."""
    siblings = [one.name for one in path.parent.iterdir()] if path.parent.is_dir() else []
    return meant(path.name, siblings)
