"""Reports made by hand, and the files that hold how they look."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from steadygrad import __version__
from steadygrad.core.finding import Advice, Finding, Severity
from steadygrad.core.record import Record, Site, record_of
from steadygrad.core.report import Blind, Report

GOLDEN = Path(__file__).parents[1] / "golden"
COST = {"seconds": 0.84, "relative_to_step": 2.1}
Units = list[tuple[str, float, float, float]]  # name, log_rms, cumulative, gain


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--overwrite", action="store_true", help="write the golden files anew")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a rendering with its file; `pytest tests/render --overwrite` writes the file."""

    def compare(name: str, rendered: str) -> None:
        path = GOLDEN / name
        rendered = rendered.replace(f'"{__version__}"', '"VERSION"')  # a release changes no file
        if request.config.getoption("--overwrite", default=False):
            path.write_text(rendered, encoding="utf-8")
        assert rendered == path.read_text(encoding="utf-8")

    return compare


def record(units: Units) -> Record:
    return record_of(
        [
            (Site(name, "unit", depth), {"log_rms": size, "cumulative": below, "gain": gain})
            for depth, (name, size, below, gain) in enumerate(units)
        ]
    )


def stack(count: int, gain: float, name: str = "layers.{}") -> Units:
    """Units that each multiply the gradient by 10**gain on its way to the input."""
    return [(name.format(i), -0.4, gain * (count - 1 - i), gain) for i in range(count)]


def weak() -> Report:
    layers = tuple(f"layers.{i}" for i in range(1, 30))
    patch = (
        "with torch.no_grad():\n"
        f"    for name in ({', '.join(map(repr, layers))}):\n"
        "        model.get_submodule(name).weight.mul_(2.41)"
    )
    cause = Finding(
        Severity.broken,
        "each of layers 1..29 keeps 0.415 of the gradient norm: Var(W)*fan_in = 0.334, "
        "ReLU needs 2.0: multiply the weights by 2.41",
        layers,
        {
            "total_decades": -11.8,
            "factor_per_unit": 0.415,
            "kind": "collapsing",
            "multiplier": 2.41,
        },
        ruled_out=("saturation: E f'^2 = 0.51, 0.5 under N(0, 1)",),
        try_next=(
            Advice("level-init", patch),
            Advice("kaiming-init", "nn.init.kaiming_normal_(w)"),
        ),
        magnitude=11.8,
        code="G201",
        name="weak-init",
        because=("G201",),
        symptoms=("G102",),
    )
    symptom = Finding(
        Severity.broken,
        "the gradient keeps 0.415 per layer over 29 layers from layers.1 to layers.29",
        layers,
        {"total_decades": -11.8},
        code="G102",
        name="vanishing-gradient",
        because=("G201",),
    )
    blind = (
        Blind("G003", "nonfinite-loss", "no loss was given"),
        Blind("G602", "unscaled-target", "no loss was given"),
        Blind("G401", "lr-too-high", "no optimizer was given"),
    )
    units = record(stack(30, -0.393))
    clear = tuple(f"G0{i:02}" for i in range(12))
    return Report("train.py", units, (cause,), (symptom,), clear, blind, COST)


def healthy() -> Report:
    return Report("GPT2", record(stack(24, 0.01, "h.{}")), (), clear=("G101", "G102"), cost=COST)


def noted() -> Report:
    note = Finding(
        Severity.note,
        "fc2 was initialised 10 times smaller than its 11 siblings; the norm that follows cancels "
        "the scale",
        ("fc2",),
        code="G201",
        name="weak-init",
    )
    return Report("net.py:build", record(stack(3, 0.0)), (note,), clear=("G101",), cost=COST)


def unread() -> Report:
    """A broken forward pass: one unit overflows, the next is not read, the last is all zero."""
    where = ("stem.conv",)
    found = Finding(
        Severity.broken,
        "3 of 4096 numbers of stem.conv are infinite",
        where,
        {"count": 3, "peak": math.inf, "loss": math.nan},
        confidence="likely",
        code="G002",
        name="nonfinite-forward",
    )
    units: Units = [
        ("stem.conv", math.inf, math.nan, math.nan),
        ("stem.norm", math.nan, -math.inf, -math.inf),
        ("head", -math.inf, 0.0, 4.0),
    ]
    blind = (Blind("G101", "exploding-gradient", "the forward pass is not finite"),)
    return Report("broken.py", record(units), (found,), clear=("G001",), blind=blind)


def crowded() -> Report:
    """Long names, many units, two findings of which one names a single layer inside a unit."""
    name = "encoder.transformer.layers.{}"
    units = stack(96, -0.02, name)
    units[40] = (name.format(40), -3.0, units[40][2], -2.9)
    single = Finding(
        Severity.broken,
        "one layer was initialised a thousand times smaller than its 95 siblings",
        (f"{name.format(40)}.attention.output.dense",),
        {"deviation_decades": -3.0},
        code="G201",
        name="weak-init",
    )
    scattered = Finding(
        Severity.risk,
        "their inputs are unscaled",
        tuple(name.format(i) for i in (3, 9, 12, 60)),
        code="G601",
        name="unscaled-input",
        confidence="possible",
    )
    return Report("hf:some/very-long-name", record(units), (single, scattered), clear=("G101",))


def hostile() -> Report:
    """Names that try to paint, to move the cursor, and to turn the direction of writing."""
    names = ("[red]boo[/red]", "a\x1b[2Jb", "c\nd", "e\u202ef", "größe.层")
    found = Finding(
        Severity.risk,
        f"look at {names[1]} and {names[0]}",
        names[:3],
        {"x\x1b": 1.5, "kind": names[1]},
        try_next=(Advice("[bold]try\x07", "print('\x1b[31m')  # [red]"),),
        code="G401",
        name="lr-too-high",
    )
    units = record([(name, 0.2, 0.1, 0.1) for name in names])
    return Report("\x1b]0;title\x07.py", units, (found,), blind=(Blind("G1", "x", "why\r\x1b"),))


def blind() -> Report:
    blind = (
        Blind("G101", "exploding-gradient", "no output of the model carries a gradient"),
        Blind("G102", "vanishing-gradient", "no output of the model carries a gradient"),
    )
    return Report("frozen.py", record([]), (), blind=blind)


REPORTS = {
    made.__name__: made() for made in (weak, healthy, noted, unread, crowded, hostile, blind)
}


@pytest.fixture
def reports() -> dict[str, Report]:
    return REPORTS


@pytest.fixture(params=list(REPORTS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def report(name: str) -> Report:
    return REPORTS[name]


@pytest.fixture
def profiled() -> Callable[[Units], Record]:
    return record
