"""The name that somebody may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def meant(name: str, known: Iterable[str], otherwise: str = "", cutoff: float = 0.6) -> str:
    """What ends a sentence on an unknown name: ': did you mean ...?', or ': ' and `otherwise`."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    advice = f"did you mean {near[0]}?" if near else otherwise
    return f": {advice}" if advice else ""
