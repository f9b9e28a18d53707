"""Set up all tests: Python blocks of the README run as one, properties draw the same examples."""

from __future__ import annotations

from hypothesis import settings
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci")

pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()], patterns=["README.md"]
).pytest()
