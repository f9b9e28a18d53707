"""Run a user's training script to its end, exactly as Python would, while it is watched."""

from __future__ import annotations

import atexit
import os
import runpy
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steadygrad.launch.excuse import show
from steadygrad.launch.main import main_of
from steadygrad.replay.captured import CannotLook

STOPPED = 4  # exit code of a run that a guard has stopped
INTERRUPTED = 130
RAISED = 1  # as Python's own

Program = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Ending:
    """How a script ended: the exit code, and the exception that is yet to be shown."""

    code: int
    error: BaseException | None = None

    @property
    def words(self) -> str:
        """What the report says of it; '' for a script that came to its end."""
        if self.error is None or isinstance(self.error, SystemExit):
            return ""
        return f"{type(self.error).__name__}: {self.error}".rstrip(": ")


def script_at(path: str) -> Path:
    """The file of a script, or CannotLook."""
    file = Path(path)
    if not file.is_file():
        what = "the directory" if file.is_dir() else "nothing at"
        raise CannotLook(f"expected a training script, got {what} {path}")
    refuse_notebook(file)
    return file


def refuse_notebook(file: Path) -> None:
    """Raise CannotLook for a notebook."""
    if file.suffix == ".ipynb":
        raise CannotLook(
            f"expected a training script, got the notebook {file}: `jupyter nbconvert --to script` "
            "makes one of it"
        )


def script(path: str, arguments: Sequence[str]) -> tuple[Program, Mapping[str, Any]]:
    """A script as `__main__`, ready to run, and the variables that it will have."""
    file = script_at(path)
    module = main_of(path)
    sys.modules["__main__"], sys.argv = module, [path, *arguments]
    sys.path[:1] = [str(file.resolve().parent)]

    def program() -> None:
        code = compile(file.read_bytes(), module.__file__ or path, "exec", dont_inherit=True)
        exec(code, vars(module))

    return program, vars(module)


def module(name: str, arguments: Sequence[str]) -> tuple[Program, Mapping[str, Any]]:
    """A module as `python -m` would run it."""
    sys.argv = [name, *arguments]
    sys.path[:1] = [os.getcwd()]
    return (lambda: runpy.run_module(name, run_name="__main__", alter_sys=True)), {}


def ended(program: Program) -> Ending:
    """Run a program, and say how it ended; nothing is raised, and nothing shown."""
    from steadygrad.guards.policies.stop import TrainingStopped

    try:
        program()
    except SystemExit as leaving:
        return Ending(0, leaving)
    except KeyboardInterrupt as interrupt:
        return Ending(INTERRUPTED, interrupt)
    except TrainingStopped as stop:
        return Ending(STOPPED, stop)
    except BaseException as error:  # whatever a script raises is its own
        return Ending(RAISED, error)
    return Ending(0)


def show_error(ending: Ending) -> None:
    """Show what a script has raised, as Python would have."""
    if ending.error is not None and not isinstance(ending.error, SystemExit):
        show(ending.error)


def leave(ending: Ending) -> int:
    """Exit as the script wanted to, or return the exit code."""
    if isinstance(ending.error, SystemExit):
        raise ending.error
    if isinstance(ending.error, KeyboardInterrupt):
        _die_of_interrupt()
    return ending.code


def _die_of_interrupt() -> None:
    """End as Python does after Ctrl-C: by the signal itself, which tells a shell to stop too."""
    sys.stdout.flush()
    sys.stderr.flush()
    atexit._run_exitfuncs()  # no public name; Python runs them before it ends by the signal
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)
