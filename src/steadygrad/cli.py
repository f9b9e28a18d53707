"""The commands. Nothing but Typer is imported before a command needs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from steadygrad import __version__

if TYPE_CHECKING:
    from steadygrad.core.report import Report
    from steadygrad.replay.captured import Captured

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Say what will go wrong in a PyTorch network before a single weight moves.",
)

CANNOT_LOOK, USERS_ERROR, INTERRUPTED = 2, 3, 130


class Format(StrEnum):
    """How a report is written."""

    text = "text"
    json = "json"
    sarif = "sarif"


class Level(StrEnum):
    """The severity from which on a finding fails the command."""

    note = "note"
    risk = "risk"
    broken = "broken"


def main() -> None:
    """Run the command line."""
    app(prog_name="steadygrad")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"steadygrad {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    """Hold the options of all commands."""


@app.command(
    name="check",
    context_settings={"allow_interspersed_args": False, "ignore_unknown_options": False},
)
def check_command(  # noqa: PLR0913 - one argument for each option
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="A training script, module:function, file.py:function, hf:NAME or timm:NAME.",
        ),
    ],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ARGUMENTS]...", help="The script's own arguments.", show_default=False
        ),
    ] = None,
    form: Annotated[
        Format, typer.Option("--format", help="How to write the report.")
    ] = Format.text,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Write the report to a file.", show_default=False),
    ] = None,
    fail_on: Annotated[Level, typer.Option(help="Lowest severity that exits with 1.")] = Level.risk,
    described: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            help='Input of a model that is built alone: "f32[8,3,224,224]", "i64[8,128]<50257" or '
            "module:function; repeat for each argument.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed for builds and drawn inputs.")] = 0,
    probes: Annotated[
        bool, typer.Option("--probes/--no-probes", help="Also look where the model runs again.")
    ] = True,
) -> None:
    """Look at a network before a single weight moves.

    The options stand before the target; all that follows it belongs to the script, which runs
    unchanged up to its first optimizer step. The report alone is written to standard output: what
    the script prints goes to standard error.

    Exit codes: 0 healthy, 1 findings, 2 could not look, 3 the user's code raised (with a report
    where the exception names a finding).
    """
    stdout = _reserve_stdout()

    def look(captured: Captured) -> int:
        from steadygrad.launch.look import look_at

        report = look_at(captured, target=target, seed=seed, probes=probes)
        _write(_rendered(report, form, stdout), output, stdout)
        return _exit_code(report, fail_on)

    def explain_error(error: BaseException) -> None:
        from steadygrad._check import explained

        report = explained(error, target)
        if report is not None:
            _write(_rendered(report, form, stdout), output, stdout)

    def guarded_look(captured: Captured) -> int:
        # a stubborn script would catch what it raises
        return _guarded(lambda: look(captured), explain_error)

    def start() -> int:
        from steadygrad.launch.target import launch

        return launch(target, arguments or (), guarded_look, described=described or (), seed=seed)

    raise typer.Exit(_guarded(start, explain_error))


@app.command()
def explain(
    code: Annotated[
        str | None,
        typer.Argument(help="A code (G102) or a name (vanishing-gradient).", show_default=False),
    ] = None,
) -> None:
    """Explain a finding: what it looks at, why it matters, when it is wrong, what to try."""
    from steadygrad.detectors import EVERY

    if code is None:
        for line in dict.fromkeys(f"{one.code}  {one.name}" for one in EVERY):
            typer.echo(line)
        return
    wanted = code.strip().lower()
    pages = [one for one in EVERY if wanted in (one.code.lower(), one.name)]
    for place, one in enumerate(pages):
        over = " over many steps" if place else ""
        _print_page(f"# {one.code} {one.name}{over}\n\n{one.page}")
    if pages:
        return
    known = [text for one in EVERY for text in (one.code, one.name)]
    raise typer.Exit(_say(f"expected a finding's code or name, got {code}{_near(code, known)}"))


def _guarded(run: Callable[[], int], explain_error: Callable[[BaseException], None]) -> int:
    """Turn what may go wrong into a sentence or the user's traceback, and an exit code."""
    try:
        return _told_apart(run, explain_error)
    except KeyboardInterrupt:
        _say("interrupted before the report was complete: nothing was changed")
        return INTERRUPTED
    except Exception as error:
        import traceback

        traceback.print_exc()
        return _say(f"could not look, by a fault of ours ({type(error).__name__}): please report")


def _told_apart(run: Callable[[], int], explain_error: Callable[[BaseException], None]) -> int:
    from steadygrad.replay.captured import CannotLook, UsersError

    try:
        return run()
    except CannotLook as error:
        return _say(str(error))
    except UsersError as error:
        from steadygrad.launch.excuse import show

        show(error.__cause__ or error)
        explain_error(error.__cause__ or error)
        return USERS_ERROR


def _say(sentence: str) -> int:
    typer.echo(f"steadygrad: {sentence}", err=True)
    return CANNOT_LOOK


def _near(text: str, known: list[str]) -> str:
    import difflib

    found = difflib.get_close_matches(text, known, n=1)
    return f": did you mean {found[0]}?" if found else ": `steadygrad explain` lists them"


def _reserve_stdout() -> TextIO:
    """Keep standard output for the report; what else writes to it goes to standard error.

    File descriptors are exchanged, so that child processes and C code are covered too.
    """
    sys.stdout.flush()
    report = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding, errors="replace")
    os.dup2(2, 1)
    return report


def _rendered(report: Report, form: Format, stdout: TextIO) -> str:
    if form is Format.json:
        from steadygrad.render.json import json

        return json(report)
    if form is Format.sarif:
        from steadygrad.render.sarif import sarif

        return sarif(report)
    from steadygrad.render.text import text
    from steadygrad.render.words import glyphs_for

    color = stdout.isatty() and not os.environ.get("NO_COLOR")
    ascii_only = glyphs_for(stdout.encoding).ascii
    return text(report, width=_width(stdout), color=color, ascii_only=ascii_only)


def _width(stdout: TextIO) -> int:
    try:
        return os.get_terminal_size(stdout.fileno()).columns
    except OSError:
        return int(os.environ.get("COLUMNS", "") or 100)


def _write(rendered: str, output: Path | None, stdout: TextIO) -> None:
    if not rendered.endswith("\n"):
        rendered += "\n"
    if output is not None:
        from steadygrad.replay.captured import CannotLook

        try:
            output.write_text(rendered, encoding="utf-8")
        except OSError as error:
            raise CannotLook(
                f"expected to write the report to {output}: {error.strerror}"
            ) from None
        return
    stdout.write(rendered)
    stdout.flush()


def _exit_code(report: Report, fail_on: Level) -> int:
    from steadygrad.core.finding import Severity

    if report.verdict == "blind":
        return CANNOT_LOOK
    failing = [found for found in report.findings if found.severity >= Severity[fail_on.value]]
    return 1 if failing else 0


def _print_page(page: str) -> None:
    from rich.console import Console
    from rich.markdown import Markdown

    Console(width=None if sys.stdout.isatty() else 100).print(Markdown(page))
