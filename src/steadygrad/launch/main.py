"""The module that a script becomes when it runs."""

from __future__ import annotations

import os
import types
from importlib.machinery import SourceFileLoader


def main_of(path: str) -> types.ModuleType:
    """Make a `__main__` for a script, as Python does; it is not put in anybody's place."""
    module = types.ModuleType("__main__")
    file = os.path.abspath(path)
    module.__dict__.update(__file__=file, __cached__=None, __builtins__=__builtins__)
    module.__loader__ = SourceFileLoader("__main__", file)
    return module
