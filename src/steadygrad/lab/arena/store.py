"""What attempts have scored, kept on disk: a line of JSON each, so that nothing is made twice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from steadygrad import __version__
from steadygrad.core.lines import Object, json_of, object_of
from steadygrad.lab.arena.contestants import fingerprint
from steadygrad.lab.arena.grid import Attempt, Score

FILE = "attempts.jsonl"


class Store:
    """Scores by attempt, of this version of torch, of us, and of the user's files.

    A line is written at once and as a whole. One that was cut off is passed over when it is read,
    and what is appended behind it begins on a line of its own. An attempt that failed is made
    again, as what it lacked may be there now.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / FILE
        self._known = dict(_read(self._path))
        self._file = self._path.open("ab", buffering=0)
        if not _ends_with_a_line(self._path):
            self._file.write(b"\n")

    def score(self, attempt: Attempt) -> Score | None:
        """Return what is known of an attempt."""
        return self._known.get(key(attempt))

    def keep(self, attempt: Attempt, score: Score) -> None:
        """Keep a score; an attempt that failed is only remembered while this lasts."""
        self._known[key(attempt)] = score
        if not score.why.startswith("failed"):
            line = json_of({"key": json.loads(key(attempt)), "score": asdict(score)})
            self._file.write(line.encode() + b"\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def key(attempt: Attempt) -> str:
    """Return what an attempt is known by: all that it is, and what it was made with."""
    cell = attempt.cell
    names = (attempt.task, *asdict(cell.contestant).values())
    made = f"steadygrad {__version__}, torch {torch.__version__} {fingerprint(names)}".rstrip()
    flat = {"task": attempt.task, **asdict(cell.setting), **asdict(cell.contestant)}
    flat |= {"lr": attempt.lr, "seed": attempt.seed, "steps": attempt.steps, "made": made}
    return json.dumps(flat)


def _read(path: Path) -> Iterator[tuple[str, Score]]:
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        score = _score(object_of(line) or {})
        if score is not None:
            yield score


def _score(told: Object) -> tuple[str, Score] | None:
    """Return what a line says; None where it says nothing of the kind."""
    try:
        score = told["score"]
        numbers = (_number(score[name]) for name in ("end", "first", "decades", "seconds"))
        end, first, gradient, seconds = numbers
        return json.dumps(told["key"]), Score(end, first, str(score["why"]), gradient, seconds)
    except (LookupError, TypeError, ValueError):
        return None


def _number(value: object) -> float:
    """Return a number; what is written as null was not read."""
    return float("nan") if value is None else float(str(value))


def _ends_with_a_line(path: Path) -> bool:
    read = path.read_bytes()
    return not read or read.endswith(b"\n")
