"""A run in another tool's format holds the same numbers, and that tool reads it back."""

from __future__ import annotations

import csv as standard
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from steadygrad.core.record import Site
from steadygrad.core.steps import Row
from steadygrad.core.store import create
from steadygrad.core.stored import Stored, read
from steadygrad.export.columns import columns
from steadygrad.export.csv import csv
from steadygrad.export.parquet import parquet
from steadygrad.export.tensorboard import tensorboard
from steadygrad.export.tfevents import crc32c

SITES = [Site("AdamW", "step"), Site('fc."0,\n', "weight"), Site("fc.bias", "weight")]


def row_of(step: int) -> Row:
    read = {"loss": [1 / (1 + step)], "grad": [0.1 * step, np.inf if step == 3 else np.nan]}
    return Row(step, step / 10, {name: np.float32(one) for name, one in read.items()})


@pytest.fixture
def run(tmp_path: Path) -> Stored:
    writer = create(tmp_path / "run", "a", pytest.fail)
    writer.meta({"started": 1000.5}, SITES)
    for step in range(5):
        writer.add(row_of(step))
    writer.add(Row(5, 0.5, {"loss": np.float32([0.25])}, "median"))
    writer.add(Row(5, 0.5, {"loss": np.float32([0.5])}, "max"))
    writer.close()
    return read(writer.path)


def test_columns_are_named_by_metric_and_place(run: Stored) -> None:
    found = columns(run)
    assert list(found) == ["loss", 'grad/fc."0,\n', "grad/fc.bias"]
    assert found["grad/fc.bias"][3] == np.inf
    assert np.isnan(found["grad/fc.bias"][[0, 1, 2, 4, 5, 6]]).all()


def test_places_of_one_name_are_numbered(run: Stored) -> None:
    sites = (Site("AdamW", "step"), Site("AdamW", "step"))
    rows = (Row(0, 0.0, {"loss": np.float32([1, 2])}),)
    found = columns(Stored(run.path, {}, sites, rows, ()))
    assert list(found) == ["loss/AdamW", "loss/AdamW 2"]


def test_the_outermost_module_has_a_name_too(run: Stored) -> None:
    sites = (Site("", "output"), Site("model", "output"))
    rows = (Row(0, 0.0, {"rms": np.float32([1, 2])}),)
    assert list(columns(Stored(run.path, {}, sites, rows, ()))) == ["rms/model", "rms/model 2"]


def test_csv_is_read_back_by_the_standard_library(run: Stored, tmp_path: Path) -> None:
    csv(run, tmp_path / "run.csv")
    with (tmp_path / "run.csv").open(newline="") as file:
        lines = [*standard.DictReader(file)]
    assert [line["step"] for line in lines] == ["0", "1", "2", "3", "4", "5", "5"]
    assert [line["kind"] for line in lines[-2:]] == ["median", "max"]
    assert lines[3]['grad/fc."0,\n'] == "0.3"
    assert [line["grad/fc.bias"] for line in lines[2:5]] == ["", "inf", ""]


def test_a_run_without_steps_is_a_table_without_rows(tmp_path: Path, run: Stored) -> None:
    empty = Stored(run.path, {}, (), (), ())
    csv(empty, tmp_path / "run.csv")
    assert (tmp_path / "run.csv").read_bytes() == b"step,seconds,kind\r\n"
    tensorboard(empty, tmp_path / "tb")


def test_parquet_is_read_back_by_pyarrow(run: Stored, tmp_path: Path) -> None:
    files = pytest.importorskip(
        "pyarrow.parquet", reason="no pyarrow: pip install 'steadygrad[parquet]'"
    )
    parquet(run, tmp_path / "run.parquet")
    table = files.read_table(tmp_path / "run.parquet")
    assert table.column_names == ["step", "seconds", "kind", *columns(run)]
    assert table["loss"].to_pylist()[1] == 0.5
    assert table["grad/fc.bias"].to_pylist() == [None, None, None, np.inf, None, None, None]


def test_without_pyarrow_a_sentence_says_what_to_install(
    run: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install 'steadygrad\[parquet\]'"):
        parquet(run, tmp_path / "run.parquet")


@pytest.mark.filterwarnings("ignore")  # those of TensorBoard's own imports
def test_tensorboard_reads_its_files_back(run: Stored, tmp_path: Path) -> None:
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="tensorboard is not installed: pip install tensorboard",
    )
    tensorboard(run, tmp_path / "tb")
    read_back = reader.EventAccumulator(str(tmp_path / "tb"))
    read_back.Reload()
    assert sorted(read_back.Tags()["scalars"]) == sorted(columns(run))
    loss = read_back.Scalars("loss")
    assert [one.step for one in loss] == [0, 1, 2, 3, 4, 5]
    assert [one.value for one in loss] == pytest.approx([1, 0.5, 1 / 3, 0.25, 0.2, 0.25], rel=1e-3)
    assert loss[3].wall_time == pytest.approx(1000.8)
    assert read_back.Scalars("grad/fc.bias")[0].value == np.inf


def test_the_same_run_replaces_its_own_file(run: Stored, tmp_path: Path) -> None:
    tensorboard(run, tmp_path / "tb")
    first = [path.read_bytes() for path in (tmp_path / "tb").iterdir()]
    tensorboard(run, tmp_path / "tb")
    assert [path.read_bytes() for path in (tmp_path / "tb").iterdir()] == first
    assert len(first) == 1


def test_the_checksums_are_those_of_their_standard() -> None:
    """Check values of the CRC catalogue, and of RFC 3720, B.4: in whatever order and size."""
    contents = [b"123456789", bytes(32), b"", b"\xff" * 32, bytes(range(32)), b"123456789"]
    expected = [0xE3069283, 0x8A9136AA, 0, 0x62A8AB43, 0x46DD794E, 0xE3069283]
    assert crc32c(contents).tolist() == expected


@pytest.mark.parametrize("form", ["csv", "tensorboard"])
def test_the_command_writes_without_torch(run: Stored, tmp_path: Path, form: str) -> None:
    source = f"""
import sys
from steadygrad.cli import app
try:
    app(["export", {str(run.path)!r}, "--to", {form!r}, "-o", "out"], prog_name="steadygrad")
except SystemExit as leaving:
    assert not leaving.code, leaving.code
assert "torch" not in sys.modules
"""
    words = [sys.executable, "-c", source]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "steadygrad: wrote out\n"
    assert (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere", "-o", "out.csv"], "expected a run directory, got nowhere"),
        (
            ["RUN", "-o", "no/such/out.csv"],
            "expected to write to no/such/out.csv, got: No such file",
        ),
    ],
)
def test_what_cannot_be_written_is_said_in_a_sentence(
    run: Stored, tmp_path: Path, words: list[str], said: str
) -> None:
    words = [str(run.path) if word == "RUN" else word for word in words]
    command = [sys.executable, "-m", "steadygrad", "export", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"steadygrad: {said}")
    assert done.stderr.count("\n") == 1
