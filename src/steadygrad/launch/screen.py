"""Which remedies have nothing to change in a script: found out at once, not by a trial of each.

At the script's first step the process is forked for each remedy; the copy applies it, says what it
found, and is gone. What cannot be found out in this way, a trial will tell.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterable

import torch

from steadygrad.remedies.applied import Applied
from steadygrad.remedies.remedy import Remedy, Scene, Unfit

SECONDS = 60.0  # for all remedies
LONGEST = 10.0  # for one, as a lock that another thread held at the fork is never freed in the copy
ROOM = 4096  # bytes of a reason, which a pipe takes at once


def screened(scene: Scene, remedies: Iterable[Remedy]) -> dict[str, str]:
    """Why remedies are unfit, by name; those that fit, or are not known to, are left out."""
    if not hasattr(os, "fork") or torch.cuda.is_initialized():
        return {}  # a device does not outlive a fork
    until = time.monotonic() + SECONDS
    found = {}
    for one in remedies:
        left = min(LONGEST, until - time.monotonic())
        why = _asked(one, scene, left) if left > 0 else ""
        if why:
            found[one.name] = why
    return found


def _asked(remedy: Remedy, scene: Scene, seconds: float) -> str:
    """Why a remedy is unfit, by a copy of this process; '' where it fits, or the copy is lost."""
    reader, writer = os.pipe()
    copy = os.fork()
    if copy == 0:
        _answer(remedy, scene, writer)
    os.close(writer)
    try:
        ready, _, _ = select.select([reader], [], [], seconds)
        return os.read(reader, ROOM).decode() if ready else ""
    finally:
        os.close(reader)
        os.kill(copy, signal.SIGKILL)  # it may be done: it is still ours to wait for
        os.waitpid(copy, 0)


def _answer(remedy: Remedy, scene: Scene, writer: int) -> None:
    """Apply the remedy in the copy, say why it is unfit, and end without a trace."""
    try:
        torch.set_num_threads(1)  # the pool of threads did not come along
        Applied([remedy], scene)
    except Unfit as reason:
        os.write(writer, str(reason).encode()[:ROOM])
    finally:
        os._exit(0)
