"""Write a file whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a path to write to; what was written there takes the place of the file in the end."""
    written = path.with_name(f".{path.name}.new")
    try:
        yield written
        written.replace(path)
    finally:
        written.unlink(missing_ok=True)
