"""Where constants of the user's became NaN or infinite, as far as a launcher saw it.

What carries no gradient is computed before a check and is merely given to its ops: a weight 1/0, an
advantage over the deviation of one sample. A launcher notes such births and tells of them while it
computes the loss again; the search for the guilty op asks here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Birth:
    """The op that broke a constant, where it stands, of which values, and the constant's name."""

    op: str
    line: tuple[str, int]
    result: str
    values: Mapping[str, str] = field(default_factory=dict)
    name: str = ""

    def fact(self) -> dict[str, Any]:
        """The birth as a fact."""
        found = {"op": self.op, "line": list(self.line), "result": self.result}
        return {**found, "values": dict(self.values), "name": self.name}


_known: ContextVar[Mapping[int, Birth] | None] = ContextVar("births", default=None)


@contextmanager
def told(births: Mapping[int, Birth]) -> Iterator[None]:
    """Know these births, by the address of the broken tensor's storage, inside the block."""
    token = _known.set(births)
    try:
        yield
    finally:
        _known.reset(token)


def birth_of(tensor: Tensor) -> Birth | None:
    """Return the birth of a broken constant; None when nobody told of one."""
    known = _known.get()
    return known.get(address(tensor)) if known else None


def address(tensor: Tensor) -> int:
    """Address of the memory that a tensor looks at."""
    return tensor.untyped_storage().data_ptr()
