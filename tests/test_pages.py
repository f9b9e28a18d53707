"""What a page shows is what happens: its blocks run in order, and print what it says.

A `text` block right below a `python` block is what that prints. A `python` block with a title is a
file of that name. A `console` block that shows output is run, in a terminal of 80 columns.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    path
    for pattern in ("README*.md", "docs/hosts.md", "docs/tutorials/*.md")
    for path in ROOT.glob(pattern)
)
TRANSLATED = sorted((ROOT / "docs/zh/tutorials").glob("*.md"))
BLOCK = re.compile(
    r"(?P<skipped><!--- skip: next -->\s+)?"
    r'^```(?P<language>\w+)(?: title="(?P<title>[^"\n]+)")?\n(?P<source>.*?)^```$',
    re.MULTILINE | re.DOTALL,
)
NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?:e[-+]?\d+)?(?!\w)")
APART = 0.1  # how far two machines' numbers with a fraction may be apart, as a share: chosen by us


class Block(NamedTuple):
    """A block of a page, and whether nothing but space stands between it and the one before."""

    language: str
    title: str
    source: str
    line: int
    adjoins: bool


def blocks(text: str) -> list[Block]:
    """Find the blocks of a page, but those to be skipped."""
    found, end = [], -1
    for match in BLOCK.finditer(text):
        adjoins = end >= 0 and not text[end : match.start()].strip()
        end = match.end()
        if not match["skipped"]:
            line = text.count("\n", 0, match.start("source"))
            language, title, source = match.group("language", "title", "source")
            found.append(Block(language, title or "", source, line, adjoins))
    return found


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory with a short path, which no line of output breaks within."""
    with tempfile.TemporaryDirectory() as home:
        yield Path(home)


@pytest.mark.filterwarnings("ignore:steadygrad. step:RuntimeWarning")  # a watch says what it finds
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_tells_the_truth(page: Path, monkeypatch: pytest.MonkeyPatch, short: Path) -> None:
    monkeypatch.chdir(short)
    namespace: dict[str, Any] = {"__name__": "page"}
    printed = None
    dtype = torch.get_default_dtype()
    try:
        for block in blocks(page.read_text(encoding="utf-8")):
            if block.language == "text" and block.adjoins and printed is not None:
                agree(block.source, printed)
            printed = None
            if block.title:
                Path(block.title).write_text(block.source, encoding="utf-8")
            elif block.language == "python":
                printed = run(block, page, namespace)
            elif block.language == "console":
                command(block.source)
    finally:
        torch.set_default_dtype(dtype)


@pytest.mark.parametrize("page", TRANSLATED, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_translation_runs_and_prints_what_its_original_does(page: Path) -> None:
    original = ROOT / "docs/tutorials" / page.name
    mine, theirs = (uncommented(one.read_text(encoding="utf-8")) for one in (page, original))
    assert mine == theirs  # so that one of them is enough to run


def uncommented(text: str) -> list[tuple[str, str]]:
    """The language and the lines of each block of a page, without comments."""
    return [(block.language, re.sub(r" *# .*", "", block.source)) for block in blocks(text)]


def run(block: Block, page: Path, namespace: dict[str, Any]) -> str:
    """Run a block, at its place in the page's file, and return what it prints."""
    code = compile("\n" * block.line + block.source, str(page), "exec", dont_inherit=True)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, namespace)
    return printed.getvalue()


def command(session: str) -> None:
    """Run each command of a session below which output stands, and compare what comes out."""
    for part in re.split(r"^\$ ", session, flags=re.MULTILINE)[1:]:
        line, _, said = part.partition("\n")
        if said.strip():
            agree(said, output_of(line.split()))


def output_of(words: list[str]) -> str:
    """What a command prints on both streams; `steadygrad` and `python` are those that run this."""
    starts = {"python": [sys.executable], "steadygrad": [sys.executable, "-m", "steadygrad"]}
    done = subprocess.run(
        [*starts[words[0]], *words[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "COLUMNS": "80", "PYTHONIOENCODING": "utf-8"},
        encoding="utf-8",
    )
    return done.stdout


def agree(said: str, printed: str) -> None:
    """Fail unless the words agree, and the numbers as far as those of two machines do.

    How lines are broken does not count, and `...` stands for anything.
    """
    wanted = " ".join(said.split())
    pattern = re.escape(NUMBER.sub("\0", wanted)).replace(r"\.\.\.", ".*?")
    pattern = pattern.replace("\0", f"({NUMBER.pattern})")
    found = re.fullmatch(pattern, " ".join(printed.split()))
    same = found and all(map(close, NUMBER.findall(wanted), found.groups()))
    assert same, f"the page says\n{said}\nbut what comes is\n{printed}"


def close(said: str, came: str) -> bool:
    """Whether numbers are the same: whole ones exactly, others to a tenth or their last digit."""
    if said.isdigit():
        return said == came
    digits, _, power = said.partition("e")
    last = 1.01 * 10.0 ** (int(power or 0) - len(digits.partition(".")[2]))
    return math.isclose(float(said), float(came), rel_tol=APART, abs_tol=last)


def test_words_must_agree_and_numbers_nearly() -> None:
    agree("loss  0.52 after\n20 steps", "loss 0.55 after 20 steps\n")
    agree("G201 weak-init: ... 2.45", "G201 weak-init: each of 9 layers, 2.46")
    for other in ("loss 0.60 after 20 steps", "loss 0.52 after 21 steps", "a loss 0.52 after 20"):
        with pytest.raises(AssertionError, match="the page says"):
            agree("loss 0.52 after 20 steps", other)


def test_a_block_that_is_skipped_is_not_run() -> None:
    page = "<!--- skip: next -->\n\n```python\n1 / 0\n```\n\n```python\n1\n```\n"
    assert [block.source for block in blocks(page)] == ["1\n"]
