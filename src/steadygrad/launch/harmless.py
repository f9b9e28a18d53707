"""What a script writes goes to a scratch directory, so that trials leave the user's files alone.

What was written before is found there again. Python's own functions are replaced for this, and
`torch.save` and safetensors', which write from C and Rust; a script that writes in another way (by
a process of its own, or a library in C) is not held back.
"""

from __future__ import annotations

import builtins
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

WRITES = frozenset("wax+")
FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "HF_HOME", "TORCH_HOME", "XDG_CACHE_HOME")
COPIED = 1 << 26  # bytes of a file that is appended to: a larger one begins empty
Function = Callable[..., Any]


class Scratch:
    """A directory that stands in for the rest of the disk; `written` are paths that it has taken.

    Devices, and the caches of libraries and of torch.compile, are the script's own to write to;
    temporary files are made inside of it.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.written: set[str] = set()
        self.gone: set[str] = set()
        mine = Path.home()
        compiled = os.path.realpath(tempfile.gettempdir()) + f"{os.sep}torchinductor_"
        named = [os.environ[key] for key in CACHES if os.environ.get(key)]
        free = [home, mine / ".cache", mine / ".triton", *map(Path, named)]
        within = (f"{one.resolve()}{os.sep}" for one in free)
        self._free = ("/dev/", "/proc/", compiled, *within)

    def twin(self, path: Any) -> str | None:
        """Where a path lies in the scratch directory; None for what may be written as it is."""
        if isinstance(path, int) or not isinstance(path, (str, bytes, os.PathLike)):
            return None  # a descriptor, a buffer
        name = os.path.realpath(os.fsdecode(path))
        if name.startswith(self._free):
            return None
        return str(self.home / "files" / name.lstrip(os.sep))

    def to_write(self, path: Any, *, keep: bool = False) -> Any:
        """The path to write to instead; with `keep` what was there is there again."""
        twin = self.twin(path)
        if twin is None:
            return path
        self.written.add(os.fsdecode(path))
        os.makedirs(os.path.dirname(twin), exist_ok=True)
        if keep and not os.path.exists(twin) and not self.is_gone(path) and _is_small(path):
            shutil.copyfile(path, twin)
        return twin

    def to_read(self, path: Any) -> Any:
        """The path to read from: the twin, where it has been written, or the path is gone."""
        twin = self.twin(path)
        return twin if twin is not None and (os.path.lexists(twin) or self.is_gone(path)) else path

    def is_gone(self, path: Any) -> bool:
        """Whether a path, or a directory that it is in, has been removed."""
        if not self.gone:
            return False
        name = os.path.realpath(os.fsdecode(path))
        return any(name == one or name.startswith(one + os.sep) for one in self.gone)


def _is_small(path: Any) -> bool:
    return os.path.isfile(path) and os.path.getsize(path) <= COPIED


@contextmanager
def harmless(scratch: Scratch) -> Iterator[None]:
    """Write to the scratch directory inside the block."""
    import safetensors.torch
    import torch

    temporary = scratch.home / "tmp"
    temporary.mkdir()
    with ExitStack() as stack:
        stack.enter_context(patch.dict(os.environ, TMPDIR=str(temporary)))
        stack.enter_context(patch.object(tempfile, "tempdir", str(temporary)))
        for owner, name, stand_in in (
            (builtins, "open", _opened(open, scratch)),
            (io, "open", _opened(io.open, scratch)),
            (os, "open", _opened_low(os.open, scratch)),
            (os, "mkdir", _made(os.mkdir, scratch)),
            (os, "stat", _read(os.stat, scratch)),
            (torch, "save", _second_written(torch.save, scratch)),
            (torch, "load", _read(torch.load, scratch)),
            (safetensors.torch, "save_file", _second_written(safetensors.torch.save_file, scratch)),
            (safetensors.torch, "load_file", _read(safetensors.torch.load_file, scratch)),
            *((os, name, _gone(getattr(os, name), scratch)) for name in ("remove", "unlink")),
            *((os, name, _moved(getattr(os, name), scratch)) for name in ("rename", "replace")),
            (os, "rmdir", _gone(os.rmdir, scratch)),
            (shutil, "rmtree", _gone(shutil.rmtree, scratch)),
        ):
            stack.enter_context(patch.object(owner, name, stand_in))
        yield


def _opened(real: Function, scratch: Scratch) -> Function:
    def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if WRITES & set(mode):
            place = scratch.to_write(file, keep=not {"w", "x"} & set(mode))
        else:
            place = scratch.to_read(file)
        return real(place, mode, *args, **kwargs)

    return opened


def _opened_low(real: Function, scratch: Scratch) -> Function:
    def opened(path: Any, flags: int, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("dir_fd") is not None:
            return real(path, flags, *args, **kwargs)
        if flags & FLAGS:
            place = scratch.to_write(path, keep=not flags & os.O_TRUNC)
        else:
            place = scratch.to_read(path)
        return real(place, flags, *args, **kwargs)

    return opened


def _made(real: Function, scratch: Scratch) -> Function:
    """Make a directory; one that was made before is taken for new."""

    def made(path: Any, *args: Any, **kwargs: Any) -> None:
        twin = scratch.twin(path)
        if twin is None or kwargs.get("dir_fd") is not None:
            real(path, *args, **kwargs)
        elif os.path.isdir(path):
            raise FileExistsError(17, "File exists", os.fsdecode(path))
        else:
            scratch.to_write(path)
            os.makedirs(twin, exist_ok=True)

    return made


def _read(real: Function, scratch: Scratch) -> Function:
    def read(path: Any, *args: Any, **kwargs: Any) -> Any:
        return real(scratch.to_read(path), *args, **kwargs)

    return read


def _second_written(real: Function, scratch: Scratch) -> Function:
    def written(what: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
        return real(what, scratch.to_write(path), *args, **kwargs)

    return written


def _gone(real: Function, scratch: Scratch) -> Function:
    """Take away what the scratch directory holds, and nothing else."""

    def gone(path: Any, *args: Any, **kwargs: Any) -> Any:
        twin = scratch.twin(path)
        if twin is None or kwargs.get("dir_fd") is not None:
            return real(path, *args, **kwargs)
        scratch.written.add(os.fsdecode(path))
        name = os.path.realpath(os.fsdecode(path))
        there = os.path.lexists(twin)
        if not there and not os.path.lexists(path):
            return real(path, *args, **kwargs)  # which raises as it does
        scratch.gone.add(name)
        return real(twin, *args, **kwargs) if there else None

    return gone


def _moved(real: Function, scratch: Scratch) -> Function:
    def moved(source: Any, target: Any, *args: Any, **kwargs: Any) -> Any:
        if scratch.twin(source) is not None:
            source = scratch.to_write(source, keep=True)
        return real(source, scratch.to_write(target), *args, **kwargs)

    return moved
