"""What users see by name: the public names, the codes, and what importing them costs."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys

import pytest

import steadygrad
from steadygrad.core.finding import Detector
from steadygrad.detectors import CLIPPING, DETECTORS, EVERY, WATCHING

FAMILIES = "0123456"  # numbers, flow, initialization, activations, step, wiring, data and loss


def test_public_names_are_sorted() -> None:
    assert steadygrad.__all__ == sorted(steadygrad.__all__)


def test_public_names_are_those_a_type_checker_sees() -> None:
    assert set(steadygrad.__all__) - {"__version__"} == _names_for_type_checkers()


@pytest.mark.parametrize("name", steadygrad.__all__)
def test_a_public_name_is_there(name: str) -> None:
    assert getattr(steadygrad, name) is not None
    assert name in dir(steadygrad)


def test_an_unknown_name_is_named_in_the_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'wath'"):
        steadygrad.wath  # noqa: B018 the access is the test


@pytest.mark.parametrize(
    "module",
    [
        "steadygrad",
        "steadygrad.cli",
        "steadygrad.core.report",
        "steadygrad.core.store",
        "steadygrad.core.tail",
        "steadygrad.core.theory",
        "steadygrad.detectors",
        "steadygrad.render",
        "steadygrad.render.live",
    ],
)
def test_importing_does_not_import_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_there_are_detectors() -> None:
    assert EVERY


@pytest.mark.parametrize("field", ["code", "name"])
@pytest.mark.parametrize("detectors", [DETECTORS, CLIPPING, WATCHING])
def test_no_two_detectors_of_one_verb_share(detectors: tuple[Detector, ...], field: str) -> None:
    values = [getattr(one, field) for one in detectors if one.code != "G408"]  # clips twice over
    assert len(values) == len(set(values)), values


def test_a_code_has_one_name_and_a_name_one_code() -> None:
    pairs = {(one.code, one.name) for one in EVERY}
    assert len(pairs) == len({code for code, _ in pairs}) == len({name for _, name in pairs})


@pytest.mark.parametrize("detector", EVERY, ids=lambda one: one.code)
def test_a_detector_is_named_and_has_a_page(detector: Detector) -> None:
    letter, family, *number = detector.code
    assert (letter, len(number)) == ("G", 2)
    assert family in FAMILIES
    assert "".join(number).isdigit()
    assert detector.name == detector.name.lower().replace(" ", "-")
    first, _, rest = detector.page.partition("\n")
    assert first.endswith("."), "a page opens with one sentence"
    assert rest.strip(), "a page says what is looked at, why it matters, when it is wrong"


def _names_for_type_checkers() -> set[str]:
    (block,) = [
        node
        for node in ast.parse(inspect.getsource(steadygrad)).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    return {
        alias.name
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
