"""The likeliest mistakes of a beginner, and what is said to each, word by word."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from steadygrad.cli import app

HELLO = "print('hello')\n"
BUILT = "import torch\n\nnet = torch.nn.Linear(2, 2)\nnumber = 3\n"
NEEDY = (
    "import argparse\n\nparser = argparse.ArgumentParser()\n"
    'parser.add_argument("--data", required=True)\nparser.parse_args()\n'
)
SAID = "steadygrad: "

pytestmark = pytest.mark.filterwarnings(  # of streams that a script is kept off
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in (("hello", HELLO), ("built", BUILT), ("needy", NEEDY)):
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "notes.ipynb").write_text("{}")
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _last(words: Sequence[str]) -> tuple[int, str]:
    ran = CliRunner().invoke(app, words)
    lines = [one for one in ran.stderr.splitlines() if one.startswith(SAID)]
    return ran.exit_code, lines[-1].removeprefix(SAID) if lines else ran.stderr


MISTAKES = {
    "a misspelt script": (
        ["check", "trian.py"],
        "expected a script, module:function, hf:NAME or timm:NAME, got trian.py, which does not "
        "exist",
    ),
    "a directory": (
        ["check", "project"],
        "expected a script, got the directory project: name the file in it",
    ),
    "a notebook": (
        ["check", "notes.ipynb"],
        "expected a training script, got the notebook notes.ipynb: `jupyter nbconvert --to script` "
        "makes one of it",
    ),
    "a script that does not train": (
        ["check", "hello.py"],
        "expected hello.py to step an optimizer, it ended without one: give the training script, "
        "or a function that builds the model (file.py:build)",
    ),
    "a script without its arguments": (
        ["check", "needy.py"],
        "expected needy.py to step an optimizer, it exited with 2 before its first step: give it "
        "the arguments it trains with",
    ),
    "a name that the file lacks": (
        ["check", "built.py:model"],
        "expected built.py to define model, it does not",
    ),
    "something that is no model": (
        ["check", "built.py:number"],
        "expected built.py:number to be a function or a Module, got int",
    ),
    "a model without its inputs": (
        ["check", "built.py:net"],
        "expected built.py:net to return (Module, inputs), got a Module alone: add --input "
        '"f32[8,3,224,224]" (its dtype and sizes; repeat it for each argument)',
    ),
    "a run that is none": (
        ["report", "runs/yesterday"],
        "expected a run directory, got runs/yesterday: `steadygrad run train.py` makes one",
    ),
    "a misspelt remedy": (
        ["explain", "level-int"],
        "expected a finding's code or name, or a remedy's, got level-int: did you mean level-init?",
    ),
    "a misspelt experiment": (
        ["lab", "saxe2015"],
        "expected the name of an experiment, got saxe2015: did you mean saxe2014?",
    ),
    "too few steps": (
        ["cure", "--steps", "3", "hello.py"],
        "cure(steps=) expected 8 or more, got 3: fewer tell nothing",
    ),
}


@pytest.mark.parametrize(("words", "said"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_has_a_sentence(home: Path, words: list[str], said: str) -> None:
    code, sentence = _last(words)
    assert code == 2
    assert sentence == said


@pytest.mark.parametrize(
    ("package", "words", "said"),
    [
        (
            "transformers",
            ["check", "hf:gpt2"],
            "expected transformers to be installed for hf:gpt2, it is not: pip install "
            "transformers",
        ),
        (
            "wandb",
            ["run", "--to", "wandb", "hello.py"],
            "expected wandb, which writes to Weights & Biases, got none: pip install "
            "'steadygrad[wandb]'",
        ),
        (
            "distributed",
            ["cure", "--dask", "tcp://127.0.0.1:9", "hello.py"],
            "expected Dask for --dask, which is not installed: pip install 'steadygrad[dask]'",
        ),
    ],
)
def test_a_missing_extra_is_named(
    home: Path, monkeypatch: pytest.MonkeyPatch, package: str, words: list[str], said: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"steadygrad.sinks.{package}", raising=False)  # it had it
    code, sentence = _last(words)
    assert code == 2
    assert sentence == said


@pytest.mark.parametrize(
    "words", [["check", "hello.py"], ["run", "hello.py"], ["cure", "hello.py"]]
)
def test_an_old_torch_is_named(
    home: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    about = home / "torch-2.1.2.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.1.2\n")
    monkeypatch.syspath_prepend(str(home))
    said = "expected torch 2.4 or later, got 2.1.2: `pip install --upgrade torch` gets it"

    assert _last(words) == (2, said)
    code = "import sys; sys.modules['torch'] = None; import steadygrad as sg; sg.check"
    there = {**os.environ, "PYTHONPATH": str(home)}
    ran = subprocess.run([sys.executable, "-c", code], env=there, capture_output=True, text=True)
    assert f"ImportError: {said}" in ran.stderr


def test_a_place_that_cannot_be_written_to_is_named(home: Path) -> None:
    code, sentence = _last(["run", "-o", "hello.py/run", "hello.py"])
    assert code == 2
    assert sentence == "expected to write the report to hello.py/run: Not a directory"


def test_a_misspelt_command_has_the_nearest(home: Path) -> None:
    code, sentence = _last(["chekc", "hello.py"])
    assert code == 2
    assert "No such command 'chekc'. Did you mean 'check'?" in sentence
