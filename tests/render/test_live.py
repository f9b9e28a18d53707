"""A running network on a terminal fits it, stands still where nothing moves, and obeys no name."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.cells import cell_len

from steadygrad.core.record import Site
from steadygrad.core.steps import Row
from steadygrad.core.stored import Stored
from steadygrad.render.live import live, number
from steadygrad.render.spark import spark
from steadygrad.render.words import ASCII, UNICODE

PARTS = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")


def sites(blocks: int, optimizers: tuple[str, ...] = ("AdamW",)) -> tuple[Site, ...]:
    modules = ["wte", *(f"h.{i}.{part}" for i in range(blocks) for part in PARTS), "ln_f"]
    weights = [
        Site(f"{module}.{name}", "weight", depth)
        for depth, module in enumerate(modules)
        for name in ("weight", "bias")[: 1 if module == "wte" else 2]
    ]
    outputs = [Site(f"h.{i}.mlp.act", "output", 6 * i + 5) for i in range(blocks)]
    return (*(Site(name, "step") for name in optimizers), *weights, *outputs)


def row(step: int, many: tuple[Site, ...]) -> Row:
    """A run without a random number: the gradient falls by a third from block to block."""
    count = sum(site.role == "weight" for site in many)
    of_step = sum(site.role == "step" for site in many)
    grad = 10.0 ** np.linspace(-4, 0, count)
    norm = float(np.linalg.norm(grad)) * (1 + step % 3)
    read = {
        "loss": [2.3 / (1 + step / 40) + 0.1 * (step % 7 == 0)] * of_step,
        "lr": [3e-4] * of_step,
        "norm": [norm] * of_step,
        "norm_after": [min(norm, 5.0)] * of_step,
        "scale": [65536.0] * of_step,
        "skipped": [float(step == 3)] * of_step,
        "grad": grad,
    }
    if step % 20 == 0:
        read["weight"] = np.full(count, 3.0)
        read["update"] = np.full(count, 3e-3)
        read["dead"] = np.linspace(0, 0.4, sum(site.role == "output" for site in many))
    return Row(step, step / 8, {name: np.float32(values) for name, values in read.items()})


def run(many: tuple[Site, ...], steps: int = 200, *events: dict[str, object]) -> Stored:
    rows = tuple(row(step, many) for step in range(steps))
    return Stored(Path("/runs/20261125-101500-train"), {}, many, rows, events)


FOUND = {
    "step": 180, "kind": "finding", "code": "G102", "name": "vanishing-gradient",
    "severity": "broken", "says": "the gradient keeps a third per block", "where": ["h.2", "h.3"],
}  # fmt: skip
CLIPPED = {"step": 190, "kind": "clip", "norm": 7.5, "threshold": 5.0}
HOSTILE = tuple(
    Site(name, "weight", depth)
    for depth, name in enumerate(("[red]boo[/red].w", "a\x1b[2Jb.w", "c\nd.w", "größe.層.w"))
)


def broken() -> Stored:
    """The third block overflows, and the loss with it."""
    plain = run(sites(4), 60, FOUND)
    last = plain.rows[-1]
    grad = last.read["grad"].copy()
    grad[14:17] = (np.inf, np.nan, 0)
    read = {**last.read, "grad": grad, "loss": np.float32([np.inf])}
    return replace(plain, rows=(*plain.rows[:-1], replace(last, read=read)))


RUNS: dict[str, tuple[Stored, float]] = {
    "small": (run(sites(2), 200, CLIPPED, CLIPPED), 0.4),
    "deep": (run(sites(48), 200, CLIPPED, FOUND), 75.0),
    "pair": (run(sites(3, ("generator", "discriminator")), 90, {"step": 89, "kind": "end"}), 1.0),
    "broken": (broken(), 0.0),
    "hostile": (
        replace(
            run(
                (Site("\x1b[31m", "step"), *HOSTILE), 30, {"step": 1, "kind": "\x1b[2J", "x": "\r"}
            ),
            path=Path("/runs/\x1b]0;x\x07"),
        ),
        0.0,
    ),
    "begun": (run(sites(2), 0), 0.0),
}


@pytest.fixture(params=list(RUNS))
def shown(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_run_looks_as_it_did(shown: str, width: int, golden: Callable[[str, str], None]) -> None:
    stored, age = RUNS[shown]
    golden(f"live-{shown}-{width}.txt", live(stored, width, 30, UNICODE, age).plain + "\n")


def test_a_run_in_ascii_looks_as_it_did(shown: str, golden: Callable[[str, str], None]) -> None:
    stored, age = RUNS[shown]
    drawn = live(stored, 80, 30, ASCII, age).plain
    assert drawn.isascii()
    golden(f"live-{shown}-ascii.txt", drawn + "\n")


@pytest.mark.parametrize("width", [40, 55, 56, 71, 72, 80, 131, 200])
@pytest.mark.parametrize("height", [12, 24, 60])
def test_a_run_fits_the_terminal(shown: str, width: int, height: int) -> None:
    lines = live(RUNS[shown][0], width, height, UNICODE).plain.split("\n")
    assert len(lines) <= height
    assert max(map(cell_len, lines)) <= width
    assert all(line.isprintable() for line in lines)


def test_three_hundred_layers_are_as_many_rows_as_fit_and_the_marked_stand_apart() -> None:
    drawn = live(RUNS["deep"][0], 80, 24, UNICODE).plain
    assert len(drawn.split("\n")) <= 24
    assert re.search(r"^✗ h\.2 … 3 ", drawn, re.MULTILINE)


def test_what_is_broken_is_said() -> None:
    drawn = live(RUNS["broken"][0], 80, 40, UNICODE).plain
    assert "now broken" in drawn
    assert re.search(r"✗ h\.\S+ +broken", drawn)


@pytest.mark.parametrize(
    ("age", "state"), [(0.0, "running"), (9.0, "running"), (75.0, "silent for 1:15")]
)
def test_a_run_that_is_written_no_more_is_silent(age: float, state: str) -> None:
    title = live(RUNS["small"][0], 80, 30, UNICODE, age).plain.split("\n")[0]
    assert title.startswith(f"20261125-101500-train  {state}")


def test_a_run_of_slow_steps_is_not_silent_between_them() -> None:
    rows = tuple(replace(one, seconds=one.step * 60.0) for one in RUNS["small"][0].rows)
    assert "running" in live(replace(RUNS["small"][0], rows=rows), 80, 30, UNICODE, 200.0).plain


def test_foreign_events_and_metrics_harm_nothing() -> None:
    odd = {"step": 1, "kind": "finding", "severity": 7, "where": [3, None], "says": ["x"]}
    strange = Row(
        3, 0.1, {"unknown": np.float32([1]), "loss": np.float32([]), "grad": np.ones(999)}
    )
    stored = replace(run(sites(1), 3, odd), rows=(strange,))
    assert "finding" in live(stored, 80, 30, UNICODE).plain


def test_numbers_of_an_event_are_short() -> None:
    jump = {"step": 2, "kind": "jump", "norm": 266.54880368491524}
    drawn = live(run(sites(1), 3, jump), 80, 30, UNICODE).plain
    assert any(line.endswith("jump norm 267") for line in drawn.splitlines())


def test_a_spark_shows_what_is_broken_and_what_was_not_read() -> None:
    series = np.array([1.0, 2.0, np.nan, np.inf, 8.0])
    assert spark(series, 5, UNICODE) == "▁▂ ✗█"
    assert spark(series, 5, ASCII) == ".: x@"
    assert spark(np.array([1.0, 1e3, 1e6]), 3, UNICODE) == "▁▅█"
    assert spark(np.array([]), 5, UNICODE) == ""
    assert len(spark(np.arange(1000.0), 7, UNICODE)) == 7


def test_numbers_are_short() -> None:
    values = [0, 1.2345, 65536, 1e5, 1.5e-9, -3.2e38, np.inf, np.nan, 0.001]
    assert [number(value) for value in values] == [
        "0", "1.23", "65536", "1e5", "1.5e-9", "-3.2e38", "broken", "", "0.001",
    ]  # fmt: skip
