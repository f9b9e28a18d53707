"""The command `replay`: a step that was left on disk, looked into again."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from steadygrad._replay import looked
from steadygrad.core.finding import Finding, from_json
from steadygrad.core.record import record_of
from steadygrad.core.report import Report
from steadygrad.core.stored import Stored, read
from steadygrad.launch.script import run
from steadygrad.replay.captured import CannotLook, Captured
from steadygrad.replay.incident import Incident, restored
from steadygrad.replay.incident import read as read_incident

Write = Callable[[Report], int]


def told(directory: Path) -> tuple[Report, str]:
    """What was found of an incident at the time, and how to look into it again."""
    stored = _run_of(directory)
    step = _step_of(directory)
    mine = (from_json(event) for event in stored.events if event.get("step") == step)
    found = [one for one in mine if one is not None]
    command = stored.meta.get("command")
    words = [str(one) for one in command] if isinstance(command, list) else ["train.py"]
    advice = f"steadygrad: to compute the step again: steadygrad replay {directory} "
    return _report(str(directory), found, step), advice + shlex.join(words)


def repeated(directory: Path, target: str, arguments: Sequence[str], write: Write) -> int:
    """Run a script up to its first step, put an incident in place of its own, and look at it."""
    incident = read_incident(directory)
    _expect_weights(incident, directory)
    step = _step_of(directory)

    def look(captured: Captured) -> int:
        cause = looked(restored(captured, incident), step)
        if not cause.findings:
            raise CannotLook(f"expected the step to fail again, but {cause.why}")
        return write(_report(str(directory), cause.findings, step))

    return run(target, arguments, look)


def _report(target: str, found: Sequence[Finding], step: int) -> Report:
    record = record_of([], {"step": step})
    return Report(target, record, tuple(replace(one, steps=(step, step)) for one in found))


def _run_of(directory: Path) -> Stored:
    try:
        return read(directory.parent.parent)
    except ValueError:
        raise CannotLook(
            f"expected an incident of a run, as runs/<run>/incidents/<step>, got {directory}"
        ) from None


def _step_of(directory: Path) -> int:
    number = directory.name.partition("-")[0]
    if not number.isdigit():
        raise CannotLook(f"expected a directory named after a step, got {directory}")
    return int(number)


def _expect_weights(incident: Incident, directory: Path) -> None:
    if not incident.whole:
        raise CannotLook(
            f"expected the weights of the step in {directory}, it has its batch alone: a model of "
            "more than 100 MB is not kept"
        )
