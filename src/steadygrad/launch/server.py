"""The process that trials are forked off: it imports torch once, while the command does so too."""

from __future__ import annotations

import multiprocessing
from multiprocessing import forkserver

SERVER = multiprocessing.get_context("forkserver")


def begin() -> None:
    """Start it, unless it runs."""
    SERVER.set_forkserver_preload(["steadygrad.launch.warm"])
    forkserver.ensure_running()
