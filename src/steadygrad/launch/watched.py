"""The command `run`: a script under a watch, and the report when it has ended."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from steadygrad._watch import Plan, Watch, is_first_rank
from steadygrad.core.report import Report
from steadygrad.launch.training import ended, leave, module, script, show_error
from steadygrad.sinks.sink import Sink

Write = Callable[[Report, Path | None], None]


@dataclass(frozen=True, slots=True)
class Options:
    """What to run, and how."""

    target: str
    arguments: tuple[str, ...] = ()
    module: bool = False
    directory: Path | None = None
    overhead: float = 0.01
    to: tuple[Sink, ...] = ()


def run(options: Options, write: Write, failed: Callable[[Report], bool]) -> int:
    """Run a script to its end, hand its report and directory to `write`, return the exit code.

    Raises SystemExit where the script does, and CannotLook for what is no script.
    """
    start = module if options.module else script
    program, variables = start(options.target, options.arguments)
    first = is_first_rank()
    name = options.target if options.module else Path(options.target).stem
    plan = Plan(
        options.directory,
        options.overhead,
        name,
        _say,
        variables,
        writes=first,
        command=(options.target, *options.arguments),
        to=options.to if first else (),
    )
    watch = Watch((), (), plan)
    ending = ended(program)
    watch.ended = ending.words
    if ending.words and ending.error is not None:
        watch.explain(ending.error)
    watch.close()
    report = _report(watch) if first else None
    sys.stdout.flush()
    show_error(ending)
    if report is not None:
        write(report, watch.path)
        if watch.path is not None and watch.path.is_dir():
            _say(f"the run is in {watch.path}")
    code = leave(ending)
    return 1 if code == 0 and report is not None and failed(report) else code


def _report(watch: Watch) -> Report | None:
    try:
        return watch.report()
    except Exception as error:  # a fault of ours must not change how the script ends
        _say(f"no report, by a fault of ours: {type(error).__name__}: {error}")
        return None


def _say(sentence: str) -> None:
    print(f"steadygrad: {sentence}", file=sys.stderr, flush=True)  # noqa: T201 - a command's own voice
