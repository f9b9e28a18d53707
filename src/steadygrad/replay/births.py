"""Note where constants of a script become NaN or infinite: ops outside of modules, no gradient."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from steadygrad.probe.births import Birth, address
from steadygrad.probe.first_forward import FILLS, UNWRITTEN, broken_at, is_broken, values_at
from steadygrad.probe.trace import users_line
from steadygrad.probe.tree import Tree, is_signal, tensors

REFLECTED = re.compile(r"^r(div|truediv|sub|mul|pow)$")  # 1 / x is x.__rdiv__(1)
SMALL = 1 << 18  # elements up to which a constant is looked at: chosen by us, 0.1 ms of a CPU


class Births:
    """The broken constants that are alive, and where each became so."""

    def __init__(self) -> None:
        self._found = WeakTensorKeyDictionary()

    def note(self, func: Callable[..., Any], given: Tree, out: Tree) -> None:
        """Look at what a function returned; a broken result takes over the birth of its cause."""
        if not isinstance(out, Tensor):
            return
        with torch._C.DisableTorchFunction():
            if out.requires_grad or not out.is_floating_point() or out.numel() > SMALL:
                return
            if not is_signal(out) or out.is_meta or _is_calm(out) or not is_broken(out):
                return
            birth = self._birth(func, [t for t in tensors(given) if t is not out], out)
            if birth is not None:
                self._found[out] = birth

    def _birth(self, func: Callable[..., Any], given: list[Tensor], out: Tensor) -> Birth | None:
        broken = [t for t in given if is_broken(t)]
        if broken:
            known: Birth | None = next((self._found[t] for t in broken if t in self._found), None)
            return known
        name = REFLECTED.sub(r"\1", getattr(func, "__name__", str(func)).strip("_"))
        result, index = broken_at(out)
        if FILLS.match(name) or UNWRITTEN.match(name) or result == "-inf":
            return None
        labels = dict(zip(("input", "other"), given, strict=False))
        return Birth(name, users_line(), result, values_at(name, labels, out, index))

    def told(self, named: Iterable[tuple[str, Any]]) -> Mapping[int, Birth]:
        """Births by address, with the names of the variables that hold the constants."""
        names = {id(one): name for name, one in named}
        return {
            address(t): replace(birth, name=names.get(id(t), ""))
            for t, birth in self._found.items()
        }


def _is_calm(tensor: Tensor) -> bool:
    """Whether all is finite, by the sum alone, which costs a third of asking each element."""
    return math.isfinite(float(tensor.sum()))
