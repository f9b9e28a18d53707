"""Long lines of a patch are broken where Python allows it, and nowhere else."""

from __future__ import annotations

import ast

import pytest

from steadygrad.render.code import broken, whole

LONG = "for name in ('a, b', 'cccccccccccccc', 'd', *['e', 'f']):\n    layer(name, 'gggggggggg, h')"


@pytest.mark.parametrize("width", [10, 20, 30, 40, 80])
def test_broken_code_means_the_same(width: int) -> None:
    assert ast.dump(ast.parse("\n".join(broken(LONG, width)))) == ast.dump(ast.parse(LONG))


def test_lines_are_filled() -> None:
    assert broken("f(aaaa, bbbb, cccc)", 14) == ["f(aaaa, bbbb,", "        cccc)"]


@pytest.mark.parametrize(
    "code", ["x = aaaaaaaaaaaaaaaaaaaaa", "# set a, b, c in the file", "f((a, b, c"]
)
def test_what_cannot_be_broken_stays(code: str) -> None:
    assert broken(code, 8) == [code]


def test_a_patch_has_the_imports_that_it_needs() -> None:
    assert whole("nn.init.zeros_(w)\nsg.guard(optimizer)").splitlines() == [
        "from torch import nn",
        "import steadygrad as sg",
        "nn.init.zeros_(w)",
        "sg.guard(optimizer)",
    ]
    assert whole("# loss = F.cross_entropy(x, y)") == "# loss = F.cross_entropy(x, y)"
