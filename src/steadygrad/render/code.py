"""Break long lines of Python where Python allows it, so that they can be pasted from a terminal."""

from __future__ import annotations

import io
import re
import tokenize

from rich.cells import cell_len

IMPORTS = {
    "nn": "from torch import nn",
    "F": "from torch.nn import functional as F",
    "sg": "import steadygrad as sg",
}
"""What a patch may use that a script may not have imported."""


def whole(patch: str) -> str:
    """A patch with the imports that it needs."""
    code = "\n".join(line for line in patch.splitlines() if not line.lstrip().startswith("#"))
    needed = [line for name, line in IMPORTS.items() if re.search(rf"\b{name}\.", code)]
    return "\n".join([*needed, patch])


def broken(code: str, width: int) -> list[str]:
    """Return the lines of a patch, those that are too long broken after commas inside brackets.

    What cannot be broken stays as it is, also when it is no Python.
    """
    lines = code.expandtabs(4).splitlines()
    if all(cell_len(line) <= width for line in lines):
        return lines
    commas = _commas(code.expandtabs(4))
    return [part for row, line in enumerate(lines) for part in _parts(line, commas[row], width)]


def _commas(code: str) -> list[list[int]]:
    """Return, for each line, the columns behind its commas in brackets."""
    columns: list[list[int]] = [[] for _ in code.splitlines()]
    depth = 0
    try:
        for token in tokenize.generate_tokens(io.StringIO(code).readline):
            if token.type == tokenize.OP:
                depth += (token.string in "([{") - (token.string in ")]}")
                if token.string == "," and depth:
                    columns[token.start[0] - 1].append(token.end[1])
    except (tokenize.TokenError, SyntaxError):
        return [[] for _ in columns]
    return columns


def _parts(line: str, commas: list[int], width: int) -> list[str]:
    """Fill lines up to the width; what follows the first is indented by eight more."""
    indent = " " * (len(line) - len(line.lstrip()) + 8)
    parts, start, margin = [], 0, ""
    while cell_len(margin + line[start:]) > width:
        room = [at for at in commas if at > start and _fits(margin + line[start:at], width)]
        later = [at for at in commas if at > start]
        if not later:
            break
        at = room[-1] if room else later[0]
        parts.append(margin + line[start:at])
        start, margin = at + (line[at : at + 1] == " "), indent
    return [*parts, margin + line[start:]] if line[start:].strip() else parts


def _fits(text: str, width: int) -> bool:
    return cell_len(text) <= width
