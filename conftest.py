"""Set up all tests: Python blocks of a page run as one, properties draw the same examples."""

from __future__ import annotations

import contextlib
import tempfile
from typing import Any

from hypothesis import settings
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci")


def _go_elsewhere(namespace: dict[str, Any]) -> None:
    """Let what a page writes fall into a directory of its own, for as long as the page runs."""
    stack = namespace["stack"] = contextlib.ExitStack()
    home = stack.enter_context(tempfile.TemporaryDirectory())
    stack.enter_context(contextlib.chdir(home))


def _come_back(namespace: dict[str, Any]) -> None:
    namespace["stack"].close()


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["README.md", "hosts.md"],
    setup=_go_elsewhere,
    teardown=_come_back,
).pytest()
