"""The commands. Nothing but Typer is imported before a command needs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from typer.core import TyperGroup

from steadygrad import __version__

if TYPE_CHECKING:
    from steadygrad.core.report import Report
    from steadygrad.render.words import Glyphs
    from steadygrad.replay.captured import Captured


class _Commands(TyperGroup):
    """Commands of which one may have a name of two words, `lab arena` beside `lab`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # click's own types
        """Take the first two words for a command where there is one of that name."""
        both = " ".join(args[:2])
        if both in self.commands:
            return both, self.commands[both], args[2:]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="See, explain, stop and cure unhealthy gradients in PyTorch, on your own training script.",
)

OPTIONS_FIRST = {"allow_interspersed_args": False, "ignore_unknown_options": False}
"""Of commands that take a script: its own arguments follow it."""

CANNOT_LOOK, USERS_ERROR, INTERRUPTED = 2, 3, 130


class Format(StrEnum):
    """How a report is written."""

    text = "text"
    json = "json"
    sarif = "sarif"
    html = "html"


class Export(StrEnum):
    """A format of other tools."""

    csv = "csv"
    parquet = "parquet"
    tensorboard = "tensorboard"


class Sinks(StrEnum):
    """Where a run is shown while it goes on."""

    tensorboard = "tensorboard"
    wandb = "wandb"
    mlflow = "mlflow"
    trackio = "trackio"


class Level(StrEnum):
    """The severity from which on a finding fails the command."""

    note = "note"
    risk = "risk"
    broken = "broken"


FormOption = Annotated[Format, typer.Option("--format", help="How to write the report.")]
OutputOption = Annotated[
    Path | None,
    typer.Option("-o", "--output", help="Write the report to a file.", show_default=False),
]
FailOption = Annotated[Level, typer.Option(help="Lowest severity that exits with 1.")]
ScriptArgument = Annotated[
    str, typer.Argument(metavar="SCRIPT", help="A training script; with -m, a module.")
]
ModuleOption = Annotated[bool, typer.Option("-m", help="Run a module, as python -m does.")]
RunArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="[RUN]",
        help="The directory of a run; without it, the newest below ./runs.",
        show_default=False,
    ),
]
ScriptArguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[ARGUMENTS]...", help="The script's own arguments.", show_default=False
    ),
]


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


@app.command(name="check", context_settings=OPTIONS_FIRST)
def check_command(  # noqa: PLR0913 - one argument for each option
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="A training script, module:function, file.py:function, hf:NAME or timm:NAME.",
        ),
    ],
    arguments: ScriptArguments = None,
    form: FormOption = Format.text,
    output: OutputOption = None,
    fail_on: FailOption = Level.risk,
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
    numeric: Annotated[
        bool,
        typer.Option("--numeric", help="Compare autograd with differences instead, in float64."),
    ] = False,
) -> None:
    """Look at a network before a single weight moves.

    The options stand before the target; all that follows it belongs to the script, which runs
    unchanged up to its first optimizer step. The report alone is written to standard output: what
    the script prints goes to standard error.

    Exit codes: 0 healthy, 1 findings, 2 could not look, 3 the user's code raised (with a report
    where the exception names a finding). With --numeric one line is written, and no report: 0 the
    gradients agree, 1 they differ (with the parameters), 2 the loss is too rough to tell.
    """
    stdout = _reserve_stdout()

    def look(captured: Captured) -> int:
        from steadygrad.launch.look import compared, look_at

        if numeric:
            comparison = compared(captured, seed=seed)
            _write(f"{comparison.verdict}: {comparison.says}", output, stdout)
            return ("agrees", "differs", "unsure").index(comparison.verdict)
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


@app.command(name="run", context_settings=OPTIONS_FIRST)
def run_command(  # noqa: PLR0913 - one argument for each option
    target: ScriptArgument,
    arguments: ScriptArguments = None,
    module: ModuleOption = False,
    directory: Annotated[
        Path | None,
        typer.Option(
            "--run", help="Where to write; runs/<time>-<name> otherwise.", show_default=False
        ),
    ] = None,
    overhead: Annotated[
        float, typer.Option(help="Share of the time that samples may take.")
    ] = 0.01,
    to: Annotated[
        list[Sinks] | None,
        typer.Option(
            help="Show the run there too, while it goes on; tensorboard writes to tb/<time>. May "
            "be given several times.",
            show_default=False,
        ),
    ] = None,
    form: FormOption = Format.text,
    output: OutputOption = None,
    fail_on: Annotated[
        Level | None,
        typer.Option(help="Lowest severity that exits with 1 after a script that ended well."),
    ] = None,
) -> None:
    """Run a training script to its end, unchanged, and say what was wrong with it.

    The options stand before the script; all that follows it is the script's own. The report is
    written to standard error, so that the script's output stays what it was.

    The exit code is the script's own; 4 where a guard stopped the run, 2 where nothing could be
    run.
    """
    from steadygrad.sinks.catalogue import SINKS

    try:
        sinks = tuple(SINKS[one.value]() for one in to or ())
    except ImportError as error:
        raise typer.Exit(_say(str(error))) from None

    from steadygrad.launch.watched import Options, run

    options = Options(target, tuple(arguments or ()), module, directory, overhead, sinks)

    def write(report: Report, path: Path | None) -> None:
        _write(_rendered(report, form, sys.stderr, path), output, sys.stderr)

    def start() -> int:
        return run(options, write, lambda report: _failed(report, fail_on))

    raise typer.Exit(_guarded(start, lambda _: None))


@app.command(name="cure", context_settings=OPTIONS_FIRST)
def cure_command(  # noqa: PLR0913 - one argument for each option
    target: ScriptArgument,
    arguments: ScriptArguments = None,
    module: ModuleOption = False,
    steps: Annotated[int, typer.Option(help="Optimizer steps of a whole trial.")] = 60,
    seeds: Annotated[int, typer.Option(help="Number of seeds that a change is proven on.")] = 3,
    workers: Annotated[int, typer.Option(help="Trials that run at a time.")] = 2,
    budget: Annotated[int, typer.Option(help="Steps of training in all, at most.")] = 1000,
    timeout: Annotated[float, typer.Option(help="Seconds that one trial may take.")] = 600.0,
    blind: Annotated[
        bool,
        typer.Option("--random/--no-random", help="Give blind draws as many steps, to compare."),
    ] = True,
    dask: Annotated[
        str | None,
        typer.Option(help="Run the trials on a Dask cluster at this address.", show_default=False),
    ] = None,
    form: FormOption = Format.text,
    output: OutputOption = None,
    fail_on: FailOption = Level.risk,
) -> None:
    """Find out what is wrong with a training, and which change proves to help.

    The script runs as often as there are trials, each in a process of its own, with one thing
    changed at a hook, and ends after some steps. What it writes goes to a scratch directory. A
    change is prescribed when it is better than no change on every seed. Ctrl-C shows what is known
    by then.

    Exit codes: 0 healthy, 1 findings, 2 could not look.
    """
    from steadygrad.launch.server import begin

    begin()  # first, as it takes a while

    def start() -> int:
        from steadygrad.launch.cured import Options, cure_script
        from steadygrad.launch.progress import Bar

        given = tuple(arguments or ())
        options = Options(
            target, given, module, steps, seeds, budget, workers, timeout, blind, dask
        )
        with Bar(sys.stderr, budget) as bar:
            report = cure_script(options, bar.tell, bar.say)
        _write(_rendered(report, form, sys.stdout), output, sys.stdout)
        return _exit_code(report, fail_on)

    raise typer.Exit(_guarded(start, lambda _: None))


@app.command(name="report")
def report_command(
    run: Annotated[
        Path | None,
        typer.Argument(help="A run directory; the newest below runs/ otherwise."),
    ] = None,
    form: FormOption = Format.text,
    output: OutputOption = None,
    fail_on: FailOption = Level.risk,
) -> None:
    """Say what was wrong with a run, from its directory; also while it is going on."""

    def start() -> int:
        from steadygrad._watch import report_of
        from steadygrad.core.stored import newest, read

        try:
            stored = read(run or newest(Path("runs")))
        except ValueError as error:
            return _say(str(error))
        report = report_of(stored)
        _write(_rendered(report, form, sys.stdout, stored.path), output, sys.stdout)
        return _exit_code(report, fail_on)

    raise typer.Exit(_guarded(start, lambda _: None))


@app.command(name="replay", context_settings=OPTIONS_FIRST)
def replay_command(
    incident: Annotated[Path, typer.Argument(help="A directory as runs/<run>/incidents/<step>.")],
    target: Annotated[
        str | None,
        typer.Argument(metavar="[SCRIPT]", help="The script of the run.", show_default=False),
    ] = None,
    arguments: ScriptArguments = None,
    form: FormOption = Format.text,
    output: OutputOption = None,
) -> None:
    """Compute a step that went wrong once more, from what was kept of it, and name the first cause.

    The script runs up to its first step, which makes the model; weights, batch, and random numbers
    are then those of the incident. Without a script, what was found at the time is shown, and how
    to repeat it: no file of a run is ever executed.
    """
    stdout = _reserve_stdout()

    def write(report: Report) -> int:
        _write(_rendered(report, form, stdout), output, stdout)
        return _exit_code(report, Level.risk)

    def start() -> int:
        from steadygrad.launch.repeated import repeated, told

        if target is None:
            report, advice = told(incident)
            code = write(report)
            typer.echo(advice, err=True)
            return code
        return repeated(incident, target, arguments or (), write)

    raise typer.Exit(_guarded(start, lambda _: None))


def _codes(begun: str) -> list[str]:
    """Codes and names of findings that begin so; remedies need torch, which takes seconds."""
    from steadygrad.detectors import EVERY

    names = dict.fromkeys(name for one in EVERY for name in (one.code, one.name))
    return [name for name in names if name.lower().startswith(begun.lower())]


@app.command()
def explain(
    code: Annotated[
        str | None,
        typer.Argument(
            help="A code (G102), its name (vanishing-gradient), or a remedy (level-init).",
            show_default=False,
            autocompletion=_codes,
        ),
    ] = None,
) -> None:
    """Explain a finding: what it looks at, why it matters, when it is wrong, what to try.

    Or a remedy: what it does, and when it fails.
    """
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
    from steadygrad.core.nearest import meant
    from steadygrad.remedies.catalogue import REMEDIES  # which imports torch

    for remedy in REMEDIES:
        if remedy.name == wanted:
            cures = ", ".join(remedy.cures)
            _print_page(f"# {remedy.name}\n\n{remedy.explains}\n\nCures: {cures}.")
            return
    known = [text for one in EVERY for text in (one.code, one.name)]
    known += [remedy.name for remedy in REMEDIES]
    advice = meant(code, known, otherwise="`steadygrad explain` lists them")
    raise typer.Exit(_say(f"expected a finding's code or name, or a remedy's, got {code}{advice}"))


@app.command(name="lab")
def lab_command(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="An experiment, as he2015.", show_default=False),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Run all; write one page.")] = False,
    full: Annotated[
        bool, typer.Option("--full", help="The paper's sizes; may take hours.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of weights, data and batches.")] = 0,
    directory: Annotated[Path, typer.Option("-o", "--output", help="Where to write.")] = Path(
        "lab"
    ),
) -> None:
    """Measure a published result about gradients again, and compare the numbers.

    Without a name, list the experiments with their claims, and what earlier runs measured. With
    one, run it and write lab/NAME/numbers.json, table.txt, figure.svg and figure.png. With --all,
    run every one, and write lab/index.html as well. `steadygrad lab arena` is a command of its own.

    Exit codes: 0 all numbers within their tolerance, 1 some out of it, 2 could not run.
    """

    def start() -> int:
        from steadygrad.lab import command

        try:
            if every:
                return command.run_all(directory, full, seed)
            return command.run(name, directory, full, seed) if name else command.show(directory)
        except (ValueError, ModuleNotFoundError, OSError) as error:
            return _say(str(error))

    raise typer.Exit(_guarded(start, lambda _: None))


class Color(StrEnum):
    """What the colors of a phase diagram say."""

    loss = "loss"
    trained = "trained"
    gradient = "gradient"


def _axis(helps: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(help=helps, show_default=False)
    return option


@app.command(name="lab arena")
def arena_command(  # noqa: PLR0913 - one argument for each option
    depths: Annotated[str | None, _axis("Numbers of blocks: 10,30,60.")] = None,
    widths: Annotated[str | None, _axis("Units of each: 64.")] = None,
    gains: Annotated[str | None, _axis("What drawn weights are multiplied by: 1.")] = None,
    init: Annotated[str | None, _axis("he,level,edge-of-chaos,lsuv, or FILE.py:init.")] = None,
    activation: Annotated[str | None, _axis("relu,gelu,tanh, or FILE.py:function.")] = None,
    norm: Annotated[str | None, _axis("none, batch, layer, rms, or FILE.py:norm.")] = None,
    optimizer: Annotated[str | None, _axis("sgd,adam; rmsprop, muon, or FILE.py:make.")] = None,
    architecture: Annotated[
        str | None, _axis("plain; residual, rezero, pre-ln, post-ln, or FILE.py:block.")
    ] = None,
    task: Annotated[
        str, typer.Option(help="What is learned: digits, or FILE.py:setup for a Setup of yours.")
    ] = "digits",
    lr: Annotated[str | None, _axis("Learning rates in place of each optimizer's search.")] = None,
    steps: Annotated[int, typer.Option(help="Optimizer steps of the last round.")] = 100,
    seeds: Annotated[int, typer.Option(help="Seeds of the last round.")] = 5,
    keep: Annotated[float, typer.Option(help="Share kept after each round; 1 keeps all.")] = 0.5,
    color: Annotated[Color, typer.Option(help="What the phase diagram shows.")] = Color.loss,
    workers: Annotated[int, typer.Option(help="Trainings that run at a time.")] = 2,
    dask: Annotated[
        str | None,
        typer.Option(help="Train on a Dask cluster at this address.", show_default=False),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Begin, however long it takes.")] = False,
    directory: Annotated[Path, typer.Option("-o", "--output", help="Where to write.")] = Path(
        "lab/arena"
    ),
) -> None:
    """Let initialisations, activations, norms, optimizers, and architectures compete.

    Every combination is trained, in each depth, width, and gain, for a short while with five
    learning rates; the better half for longer; the best on several seeds. Printed is a ranking for
    each setting with what cannot be told apart, and what no initialisation trains. Written are
    ranking.txt, ranking.json, phase.svg, phase.png, and attempts.jsonl, from which the same command
    goes on where it was interrupted. A name FILE.py:FUNCTION is a function of yours; docs/lab.md
    says what it takes.

    Exit codes: 0 ranked, 2 could not, 130 interrupted, with the ranking so far.
    """

    def start() -> int:
        from steadygrad.lab.arena.asking import asked
        from steadygrad.lab.arena.command import Options, run
        from steadygrad.lab.arena.grid import Schedule

        given = {
            "depths": depths, "widths": widths, "gains": gains, "inits": init,
            "activations": activation, "norms": norm, "optimizers": optimizer,
            "architectures": architecture, "lr": lr,
        }  # fmt: skip
        try:
            grid, rates = asked(task, given)
            schedule = Schedule(steps, seeds, keep)
            options = Options(grid, schedule, rates, directory, color.value, workers, dask, yes)
            return run(options)
        except (ValueError, ModuleNotFoundError, OSError) as error:
            return _say(str(error))

    raise typer.Exit(_guarded(start, lambda _: None))


@app.command()
def top(
    run: RunArgument = None,
    once: Annotated[bool, typer.Option("--once", help="Draw once and end.")] = False,
) -> None:
    """Follow a run from another terminal: loss, gradient, layers, events; Ctrl-C ends it.

    It reads the files of the run and nothing else, so that it cannot slow the training. Where
    standard output is no terminal, it draws once and ends.
    """
    from steadygrad.core.stored import newest
    from steadygrad.render.words import clean, glyphs_for

    glyphs = glyphs_for(sys.stdout.encoding)
    try:
        _follow(newest(Path("runs")) if run is None else run, once, glyphs)
    except KeyboardInterrupt:
        raise typer.Exit from None
    except (ValueError, OSError) as error:
        raise typer.Exit(_say(clean(str(error), glyphs))) from None


@app.command(name="serve")
def serve_command(
    run: RunArgument = None,
    port: Annotated[int, typer.Option(help="Port of 127.0.0.1; 0 for any that is free.")] = 8742,
) -> None:
    """Show the page of a run in a browser, anew as the run goes on; Ctrl-C ends it.

    Only this machine can reach it, at an address that nobody can guess; over ssh, forward the port
    (ssh -L 8742:127.0.0.1:8742). No request changes anything.
    """

    def start() -> int:
        from steadygrad.core.stored import newest
        from steadygrad.launch.served import serve

        try:
            serve(run or newest(Path("runs")), port, lambda where: typer.echo(where))
        except KeyboardInterrupt:
            typer.echo("")
        return 0

    raise typer.Exit(_guarded(start, lambda _: None))


@app.command(name="export")
def export_command(
    run: RunArgument = None,
    form: Annotated[
        Export, typer.Option("--to", help="csv, parquet (needs pyarrow), or tensorboard.")
    ] = Export.csv,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="The file to write, for tensorboard a directory; run.csv, run.parquet, or tb "
            "otherwise.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write the steps of a run for other tools: a row for each, a column for each number in it.

    Where old steps were decimated, the column `kind` says which of min, median, and max a row is;
    TensorBoard gets the medians.
    """
    from steadygrad.core.stored import newest, read
    from steadygrad.export.formats import FORMATS

    written = output or Path("tb" if form is Export.tensorboard else f"run.{form.value}")
    try:
        FORMATS[form.value](read(run or newest(Path("runs"))), written)
    except (ValueError, ImportError) as error:
        raise typer.Exit(_say(str(error))) from None
    except OSError as error:
        why = f"expected to write to {written}, got: {error.strerror}: name another path with -o"
        raise typer.Exit(_say(why)) from None
    typer.echo(f"steadygrad: wrote {written}", err=True)


@app.command(name="demo")
def demo_command() -> None:
    """Watch a network of 30 layers that does not learn be explained, corrected, and trained.

    Takes half a minute. It needs scikit-learn, for the digits; nothing is fetched or written.
    """

    def start() -> int:
        from steadygrad.demo import main

        return main()

    raise typer.Exit(_guarded(start, lambda _: None))


@app.command(name="doctor")
def doctor_command() -> None:
    """Say what there is: versions, devices, mechanisms of guards, extras, and what would be blind.

    The mechanisms are tried on a tiny parameter; nothing is installed, fetched, or changed.
    """
    from steadygrad.launch.doctor import doctor

    for line in doctor():
        typer.echo(line)


def _follow(path: Path, once: bool, glyphs: Glyphs) -> None:
    """Draw a run, twice a second on a terminal."""
    import time

    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from steadygrad.core.stored import written
    from steadygrad.core.tail import Tail
    from steadygrad.render.live import live

    drawn_on_terminal = sys.stdout.isatty()
    console = Console(width=None if drawn_on_terminal else _width(sys.stdout), highlight=False)
    tail = Tail(path)

    def draw() -> Text:
        height = console.height if drawn_on_terminal else 40
        return live(tail.look(), console.width, height, glyphs, time.time() - written(path))

    if once or not drawn_on_terminal:
        console.print(draw(), soft_wrap=True)
        return
    screen = Live(draw(), console=console, screen=True, auto_refresh=False)
    try:  # not `with`: an interrupt while it starts would leave the terminal as it draws
        screen.start(refresh=True)
        while True:
            time.sleep(0.5)
            screen.update(draw(), refresh=True)
    finally:
        screen.stop()


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
    from steadygrad.core.environment import expect_torch

    try:
        expect_torch()
    except ImportError as error:
        return _say(str(error))

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


def _reserve_stdout() -> TextIO:
    """Keep standard output for the report; what else writes to it goes to standard error.

    File descriptors are exchanged, so that child processes and C code are covered too.
    """
    sys.stdout.flush()
    report = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding, errors="replace")
    os.dup2(2, 1)
    return report


def _rendered(report: Report, form: Format, stdout: TextIO, run: Path | None = None) -> str:
    if form is Format.html:
        from steadygrad.launch.page import page

        return page(report, run)
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


def _failed(report: Report, fail_on: Level | None) -> bool:
    return fail_on is not None and _exit_code(report, fail_on) == 1


def _print_page(page: str) -> None:
    from rich.console import Console
    from rich.markdown import Markdown

    Console(width=None if sys.stdout.isatty() else 100).print(Markdown(page))
