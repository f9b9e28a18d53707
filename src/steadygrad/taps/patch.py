"""A function of torch with one of ours around it, for as long as it is wanted."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Around = Callable[[Callable[..., Any]], Callable[..., Any]]
"""From a function to the one that is called in its place and calls it."""

MARK = "_steadygrad_stands_for"


@dataclass(slots=True)
class Stand:
    """What a replacement stands for, and whether it is still wanted."""

    original: Any  # a function, or a classmethod
    active: bool = True


def replace(owner: Any, name: str, ours: Any) -> Stand:
    """Put a function, or classmethod, of ours in place of `owner.name`."""
    stand = Stand(vars(owner)[name])
    setattr(ours, MARK, stand)
    setattr(owner, name, ours)
    return stand


def put_back(owner: Any, name: str, stand: Stand) -> None:
    """Take a replacement away; under one that was put on top it stays, and only passes on.

    Those that nobody wants any more are taken away with the one above them.
    """
    stand.active = False
    found = vars(owner)[name]
    while (mine := getattr(found, MARK, None)) is not None and not mine.active:
        found = mine.original
    setattr(owner, name, found)


class Patch:
    """A function around `owner.name`, until it is removed."""

    def __init__(self, owner: Any, name: str, around: Around) -> None:
        self._owner, self._name = owner, name
        original = vars(owner)[name]
        ours = around(original)

        @functools.wraps(original)
        def passed(*args: Any, **kwargs: Any) -> Any:  # whatever the function returns
            return ours(*args, **kwargs) if stand.active else original(*args, **kwargs)

        self._stand = stand = replace(owner, name, passed)

    def remove(self) -> None:
        """Put the function back, where nobody else stands in its place."""
        put_back(self._owner, self._name, self._stand)
