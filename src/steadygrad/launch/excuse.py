"""Show a user's exception as Python would have shown it, without a frame of ours."""

from __future__ import annotations

import os
import sys
import traceback
from types import TracebackType

OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def show(error: BaseException) -> None:
    """Print the traceback through `sys.excepthook`, which the user may have replaced."""
    _clean_all(error)
    sys.excepthook(type(error), error, error.__traceback__)


def told(error: BaseException) -> str:
    """The same as text."""
    _clean_all(error)
    return "".join(traceback.format_exception(error))


def _clean_all(error: BaseException) -> None:
    """Take our frames out of an exception and of those it came from."""
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            one.__traceback__ = without_ours(one.__traceback__)
            waiting += [one.__cause__, one.__context__]


def without_ours(given: TracebackType | None) -> TracebackType | None:
    """Rebuild a traceback without the frames of this package."""
    kept = []
    while given is not None:
        if not given.tb_frame.f_code.co_filename.startswith(OURS):
            kept.append(given)
        given = given.tb_next
    chain: TracebackType | None = None
    for one in reversed(kept):
        chain = TracebackType(chain, one.tb_frame, one.tb_lasti, one.tb_lineno)
    return chain
