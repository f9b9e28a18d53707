"""Readings and events as lines of JSON, and back; what is no such line reads as None."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast, get_args

import numpy as np

from steadygrad.core.steps import Array, Kind, Row

KINDS: tuple[Kind, ...] = get_args(Kind)
LARGEST = float(np.finfo(np.float32).max)
MOST_STEPS = 2**62  # a step beyond it is no step: it would not fit into an int64
NOT_OURS = (ValueError, TypeError, OverflowError, RecursionError)  # what a foreign line may raise

Object = dict[str, Any]  # JSON of the user's or of a foreign hand: anything

# --- Writing -------------------------------------------------------------------------------------


def line_of(row: Row) -> str:
    """Write a row as a line: four significant digits, null for what was not read.

    An infinity is written 1e999, which every reader of JSON takes for one or for the largest number
    it knows. What was not read at the end of an array is left out.
    """
    read = ",".join(f"{json.dumps(name)}:[{text}]" for name, text in _texts(row.read) if text)
    kind = "" if row.kind == "step" else f'"kind":"{row.kind}",'
    return f'{{"step":{row.step},"t":{row.seconds:.2f},{kind}"read":{{{read}}}}}\n'


def _texts(read: Mapping[str, Array]) -> Iterator[tuple[str, str]]:
    return ((name, numbers(array)) for name, array in read.items())


def numbers(array: Array) -> str:
    """Write an array without its brackets; one formatting for all of it, as that is fastest."""
    if len(array) and np.isnan(array[-1]):
        array = array[: int(np.flatnonzero(~np.isnan(array)).max(initial=-1)) + 1]
    text = ",".join(["%.4g"] * len(array)) % tuple(array.tolist())
    if "n" not in text:
        return text
    return text.replace("nan", "null").replace("inf", "1e999")


def json_of(value: object) -> str:
    """Write any value as JSON; what is no number, text, list, or dict is written as its text."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        pairs = (f"{json.dumps(str(key))}: {json_of(item)}" for key, item in value.items())
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(json_of, value))}]"
    if isinstance(value, float) and not math.isfinite(value):
        return "null" if math.isnan(value) else "1e999" if value > 0 else "-1e999"
    plain = value is None or isinstance(value, str | int | float)
    return json.dumps(value if plain else str(value))


# --- Reading -------------------------------------------------------------------------------------


def rows_of(lines: Iterable[bytes]) -> Iterator[Row]:
    """Read the rows among lines."""
    return (row for line in lines if (row := row_of(line)) is not None)


def row_of(line: bytes) -> Row | None:
    """Read a row from a line."""
    try:
        found = json.loads(line)
        step, seconds, kind = found["step"], float(found["t"]), found.get("kind", "step")
        if not _is_step(step) or not math.isfinite(seconds) or kind not in KINDS:
            return None
        read = {name: _array(values) for name, values in found["read"].items()}
    except (*NOT_OURS, LookupError, AttributeError):
        return None
    return Row(step, seconds, read, cast(Kind, kind))


def events_of(lines: Iterable[bytes]) -> Iterator[Object]:
    """Read the events among lines: objects with a step and a kind."""
    for line in lines:
        found = object_of(line)
        if found and _is_step(found.get("step")) and isinstance(found.get("kind"), str):
            yield found


def object_of(text: bytes) -> Object | None:
    """Read an object of JSON."""
    try:
        found = json.loads(text)
    except NOT_OURS:
        return None
    return found if isinstance(found, dict) else None


def _is_step(value: object) -> bool:
    return type(value) is int and 0 <= value < MOST_STEPS


def _array(values: object) -> Array:
    """Return what a list of numbers and nulls says; a large number is no infinity."""
    wide = np.array(values, dtype=np.float64)
    if wide.ndim != 1:
        raise ValueError(f"an array of readings has one axis, got {wide.ndim}")
    broken = np.isinf(wide)
    if not broken.any():
        return np.clip(wide, -LARGEST, LARGEST).astype(np.float32)
    return np.where(broken, wide, np.clip(wide, -LARGEST, LARGEST)).astype(np.float32)
