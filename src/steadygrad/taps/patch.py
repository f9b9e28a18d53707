"""A function of torch with one of ours around it, for as long as it is wanted."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

Around = Callable[[Callable[..., Any]], Callable[..., Any]]
"""From a function to the one that is called in its place and calls it."""


class Patch:
    """Stands in place of `owner.name` until it is removed.

    Whoever has put something of their own on top since then keeps it: ours stays underneath and
    passes everything on.
    """

    def __init__(self, owner: Any, name: str, around: Around) -> None:
        self._owner, self._name = owner, name
        self._original = vars(owner)[name]
        self.active = True
        ours, original = around(self._original), self._original

        @functools.wraps(original)
        def passed(*args: Any, **kwargs: Any) -> Any:  # whatever the function returns
            return ours(*args, **kwargs) if self.active else original(*args, **kwargs)

        self._passed = passed
        setattr(owner, name, passed)

    def remove(self) -> None:
        """Put the function back, where nobody else stands in its place."""
        self.active = False
        if vars(self._owner).get(self._name) is self._passed:
            setattr(self._owner, self._name, self._original)
