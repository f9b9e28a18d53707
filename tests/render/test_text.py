"""A report on a terminal fits it, hides nothing, and obeys no name."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.cells import cell_len

from steadygrad.core.report import Report
from steadygrad.render.text import text
from steadygrad.render.words import ASCII, UNICODE, glyphs_for

ANSI = re.compile(r"\x1b\[[0-9;]*m")


@pytest.mark.parametrize("width", [80, 40])
def test_a_report_looks_as_it_did(
    name: str, report: Report, width: int, golden: Callable[[str, str], None]
) -> None:
    golden(f"{name}-{width}.txt", text(report, width))


def test_a_report_in_ascii_looks_as_it_did(
    name: str, report: Report, golden: Callable[[str, str], None]
) -> None:
    golden(f"{name}-ascii.txt", text(report, 80, ascii_only=True))


@pytest.mark.parametrize("width", [40, 55, 56, 63, 64, 80, 131, 200])
def test_every_line_but_code_fits(report: Report, width: int) -> None:
    long = [line for line in text(report, width).splitlines() if cell_len(line) > width]
    assert all("mul_(" in line for line in long)


def test_ascii_is_ascii(report: Report) -> None:
    assert text(report, ascii_only=True).isascii()


def test_color_adds_sequences_and_changes_no_sign(report: Report) -> None:
    assert ANSI.sub("", text(report, color=True)) == text(report)


def test_no_color_is_no_sequence(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" not in text(report)


def test_no_control_character_of_a_name_survives(reports: dict[str, Report]) -> None:
    drawn = ANSI.sub("", text(reports["hostile"], color=True))
    assert all(line.isprintable() for line in drawn.split("\n"))
    assert "[red]boo[/red]" in drawn
    assert r"a\x1b[2Jb" in drawn


def test_a_report_opens_with_the_verdict_and_the_target(reports: dict[str, Report]) -> None:
    openings = {name: text(one).partition("\n")[0] for name, one in reports.items()}
    assert openings["healthy"] == "✓ healthy  GPT2"
    assert openings["noted"] == "✓ healthy, 1 note  net.py:build"
    assert openings["weak"] == "✗ 1 finding  train.py"
    assert openings["crowded"] == "✗ 2 findings, 1 broken, 1 risk  hf:some/very-long-name"
    assert openings["blind"] == "? blind: nothing could be looked at  frozen.py"


def test_a_healthy_report_is_short(reports: dict[str, Report]) -> None:
    assert len(text(reports["healthy"]).splitlines()) <= 20


def test_code_can_be_pasted(reports: dict[str, Report]) -> None:
    (cause,) = reports["weak"].findings
    drawn = text(reports["weak"])
    start = drawn.index("    with torch.no_grad()")
    code = drawn[start : drawn.index("\n  or ")]
    wanted = cause.try_next[0].patch
    compiled = compile("\n".join(line[4:] for line in code.split("\n")), "", "exec")
    assert compiled.co_code == compile(wanted, "", "exec").co_code
    assert compiled.co_consts == compile(wanted, "", "exec").co_consts


def test_a_symptom_stands_under_one_root(reports: dict[str, Report]) -> None:
    weak = reports["weak"]
    twice = replace(weak, findings=(*weak.findings, replace(weak.findings[0], where=())))
    assert text(twice).count("G102 vanishing-gradient") == 1


def test_the_signs_are_chosen_by_the_encoding() -> None:
    assert glyphs_for("utf-8") is UNICODE
    assert [glyphs_for(one) for one in ("ascii", "cp437", "latin-1", "no-such", None)] == [
        ASCII
    ] * 5
