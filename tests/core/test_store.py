"""A run on disk survives kills, full disks, and foreign hands, and stays small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadygrad.core.decimation import Memory, decimated
from steadygrad.core.lines import json_of, line_of, row_of
from steadygrad.core.record import Site
from steadygrad.core.segments import segments
from steadygrad.core.steps import METRICS, Row
from steadygrad.core.store import Writer, create
from steadygrad.core.stored import newest, read, record_of
from steadygrad.core.tail import Tail

SITES = (Site("optimizer", "step"), Site("a.weight", "weight", 0, "Linear", 3, (2, 3)))
SAMPLED = ("weight", "update", "moved")
OF_OUTPUT = ("rms", "mean", "min", "max", "grad_rms", "dead")


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def writer(tmp_path: Path, said: list[str]) -> Iterator[Writer]:
    made = create(tmp_path / "run", "plain", said.append)
    yield made
    made.close()


def row(step: int, *grad: float) -> Row:
    read = {"loss": np.float32([1 / (step + 1)]), "grad": np.float32(grad or (1.0, 2.0))}
    return Row(step, step / 10, read)


# --- Lines ---------------------------------------------------------------------------------------

FLOATS = st.floats(width=32)
ROWS = st.builds(
    Row,
    st.integers(0, 2**40),
    st.floats(0, 1e7),
    st.dictionaries(
        st.sampled_from(sorted(METRICS)),
        st.lists(FLOATS, max_size=9).map(lambda one: np.array(one, np.float32)),
    ),
    st.sampled_from(["step", "min", "median", "max"]),
)


@given(ROWS)
def test_a_row_is_read_as_it_was_written(written: Row) -> None:
    line = line_of(written).encode()
    back = row_of(line)
    assert back is not None
    assert (back.step, back.kind) == (written.step, written.kind)
    assert back.seconds == pytest.approx(written.seconds, abs=0.006)
    for name, values in written.read.items():
        whole = np.full(len(values), np.nan, np.float32)
        known = back.read.get(name, whole[:0])
        whole[: len(known)] = known
        np.testing.assert_array_equal(np.isinf(whole), np.isinf(values))
        np.testing.assert_allclose(whole, values, rtol=6e-4, atol=1e-45)


def test_a_line_is_json_that_others_read() -> None:
    line = line_of(Row(12, 3.21, {"grad": np.float32([0.5, np.nan, -np.inf, np.inf, np.nan])}))
    assert line == '{"step":12,"t":3.21,"read":{"grad":[0.5,null,-1e999,1e999]}}\n'


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"null",
        b"[1]",
        b"{}",
        b"\xff\xfe",
        b'{"step":1,"t":0}',
        b'{"step":-1,"t":0,"read":{}}',
        b'{"step":true,"t":0,"read":{}}',
        b'{"step":1.5,"t":0,"read":{}}',
        b'{"step":1e400,"t":0,"read":{}}',
        b'{"step":9223372036854775808,"t":0,"read":{}}',
        b'{"step":' + b"9" * 5000 + b',"t":0,"read":{}}',
        b'{"step":1,"t":"x","read":{}}',
        b'{"step":1,"t":1e999,"read":{}}',
        b'{"step":1,"t":0,"read":[]}',
        b'{"step":1,"t":0,"read":{"grad":1}}',
        b'{"step":1,"t":0,"read":{"grad":[[1]]}}',
        b'{"step":1,"t":0,"read":{"grad":[1,[2]]}}',
        b'{"step":1,"t":0,"read":{"grad":["x"]}}',
        b'{"step":1,"t":0,"read":{"grad":[{}]}}',
        b'{"step":1,"t":0,"read":{"grad":[1' + b"0" * 400 + b"]}}",
        b'{"step":1,"t":0,"read":{},"kind":"mode"}',
        b"[" * 100_000,
    ],
)
def test_a_foreign_line_is_no_row(line: bytes) -> None:
    assert row_of(line) is None


def test_any_value_becomes_json() -> None:
    value = {"a": np.float32(1), 2: (float("nan"), None, True), "p": Path("x"), "b": np.ones(2)}
    back = json.loads(json_of({**value, "i": [np.inf, -np.inf], "\x1b": "\ud800"}))
    assert back == {
        "a": 1.0, "2": [None, None, True], "p": "x", "b": [1, 1],
        "i": [np.inf, -np.inf], "\x1b": "\ud800",
    }  # fmt: skip


# --- Decimation ----------------------------------------------------------------------------------


@given(st.lists(st.lists(FLOATS, max_size=4), min_size=1, max_size=130), st.integers(0, 3))
def test_the_median_lies_between_min_and_max_and_all_were_read(
    raw: list[list[float]], times: int
) -> None:
    rows = [Row(i, 0.0, {"grad": np.array(one, np.float32)}) for i, one in enumerate(raw)]
    for _ in range(times + 1):
        rows = decimated(rows)
    table = _table(raw)
    low, high = _least(table), -_least(-table)
    np.testing.assert_array_equal(_least(_of(rows, "min", "median")), low)
    np.testing.assert_array_equal(-_least(-_of(rows, "median", "max")), high)
    for triple in zip(*(_rows_of(rows, kind) for kind in ("min", "median", "max")), strict=True):
        least, middle, most = (_of([one], one.kind)[0] for one in triple)
        assert not np.any((least > middle) | (middle > most))


def test_ten_rows_become_three() -> None:
    rows = [row(i, float(i), np.nan if i else 5.0) for i in range(25)]
    kept = decimated(rows)
    assert [(one.step, one.kind) for one in kept[:4]] == [
        (0, "min"), (0, "median"), (0, "max"), (10, "min"),
    ]  # fmt: skip
    assert len(kept) == 9
    np.testing.assert_array_equal([one.read["grad"][0] for one in kept[:3]], [0, 4, 9])
    np.testing.assert_array_equal([one.read["grad"][1] for one in kept[:3]], [5, 5, 5])


def test_thirty_of_a_triple_become_three_of_the_mins_the_medians_and_the_maxs() -> None:
    rows = decimated(decimated([row(i, float(i)) for i in range(100)]))
    assert [one.read["grad"].tolist() for one in rows] == [[0.0], [44.0], [99.0]]


def test_what_was_read_once_is_kept_once() -> None:
    rows = [Row(i, 0.0, {"weight": np.float32([3.0])} if i == 4 else {}) for i in range(10)]
    kept = decimated(rows)
    assert [dict(one.read) for one in kept] == [{}, {"weight": np.float32([3.0])}, {}]


def test_memory_is_bounded_and_keeps_the_extremes() -> None:
    memory = Memory(limit=2000)
    for step in range(20_000):
        memory.add(row(step, float(step == 777), 1.0))
    rows = memory.rows
    assert sum(2 + sum(map(len, one.read.values())) for one in rows) <= 2000
    assert [one.step for one in rows] == sorted(one.step for one in rows)
    assert (rows[0].step, rows[-1].step) == (0, 19_999)
    assert max(float(one.read["grad"].max(initial=0)) for one in rows) == 1.0
    assert rows[-1].kind == "step"


def test_memory_copes_with_rows_larger_than_it() -> None:
    memory = Memory(limit=3)
    for step in range(30):
        memory.add(row(step))
    assert 0 < len(memory.rows) <= 30


def _rows_of(rows: list[Row], kind: str) -> list[Row]:
    return [one for one in rows if one.kind == kind]


def _of(rows: list[Row], *kinds: str) -> np.ndarray:
    return _table([one.read.get("grad", []) for one in rows if one.kind in kinds])


def _table(raw: list[list[float]]) -> np.ndarray:
    table = np.full((len(raw), 4), np.nan, np.float32)
    for line, values in zip(table, raw, strict=True):
        line[: len(values)] = values
    return table


def _least(table: np.ndarray) -> np.ndarray:
    return np.fmin.reduce(table, axis=0)


# --- Writing and reading -------------------------------------------------------------------------


def test_a_run_is_read_as_it_was_written(writer: Writer, said: list[str]) -> None:
    writer.meta({"facts": {"optimizer": "AdamW"}}, SITES[:1])
    writer.meta({}, SITES)
    for step in range(3):
        writer.add(row(step, 1.0))
    writer.event({"step": 2, "kind": "finding", "code": "G101", "evidence": {"x": np.inf}})
    writer.close()
    writer.close()
    run = read(writer.path)
    assert run.sites == SITES
    assert run.meta["schema"] == 1
    assert [one.step for one in run.rows] == [0, 1, 2]
    assert [one["kind"] for one in run.events] == ["finding", "end"]
    record = record_of(run)
    assert record.facts == {"optimizer": "AdamW"}
    assert record.series("grad", "weight").tolist() == [[1.0]] * 3
    assert said == []


def test_rows_are_written_while_training_goes_on(writer: Writer) -> None:
    for step in range(50):
        writer.add(row(step))
    _until(lambda: len(read(writer.path).rows) == 50)
    writer.add(row(50))
    assert writer.flush()
    assert len(read(writer.path).rows) == 51


def test_two_writers_of_one_name_do_not_meet(tmp_path: Path, said: list[str]) -> None:
    made: list[Writer] = []
    barrier = threading.Barrier(8)

    def make() -> None:
        barrier.wait()
        made.append(create(tmp_path / "run", "x", said.append))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    for one in made:
        one.close()
    assert {one.path.name for one in made} == {"run", *(f"run-{i}" for i in range(2, 9))}


def test_a_directory_with_other_things_is_used(tmp_path: Path, said: list[str]) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    made = create(tmp_path, "x", said.append)
    made.close()
    assert made.path == tmp_path


def test_a_run_without_a_directory_is_named_by_time(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = create(None, "../my train\x1b.py", said.append)
    made.close()
    assert made.path.parent == Path("runs")
    assert made.path.name.endswith("-my-train-.py")
    assert newest(Path("runs")) == made.path


def test_an_incident_has_a_directory_and_arrays(writer: Writer) -> None:
    first, second = writer.incident(7), writer.incident(7)
    assert first is not None
    assert second is not None
    assert (first.name, second.name) == ("7", "7-2")
    writer.save(first / "ring.npz", {"grad": np.arange(6.0).reshape(2, 3)})
    writer.flush()
    with np.load(first / "ring.npz", allow_pickle=False) as arrays:
        assert arrays["grad"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_objects_are_not_pickled(writer: Writer, said: list[str]) -> None:
    directory = writer.incident(1)
    assert directory is not None
    writer.save(directory / "bad.npz", {"x": np.array([object()])})
    writer.flush()
    assert len(said) == 1


@pytest.mark.parametrize("place", ["", "missing"])
def test_what_is_no_run_is_a_sentence(tmp_path: Path, place: str) -> None:
    with pytest.raises(ValueError, match=r"expected a run directory, got .*steadygrad run"):
        read(tmp_path / place)


def test_a_last_line_cut_off_at_any_byte_costs_that_line_only(tmp_path: Path) -> None:
    before, last = line_of(row(0)), line_of(row(1))
    for end in range(len(last) + 1):
        (tmp_path / "steps.jsonl").write_text(before + last[:end])
        rows = read(tmp_path).rows
        assert len(rows) == (2 if end >= len(last) - 1 else 1)


@pytest.mark.parametrize("meta", ["", '{"sites": [', "[]", '{"sites": 3}', '{"sites": [{"a": 1}]}'])
def test_a_broken_meta_leaves_the_rows(tmp_path: Path, meta: str) -> None:
    (tmp_path / "meta.json").write_text(meta)
    (tmp_path / "steps.jsonl").write_text("rubbish\n" + line_of(row(3)) + "{}\n")
    (tmp_path / "events.jsonl").write_text('{"step": "x", "kind": 1}\n{"step": 1, "kind": "a"}\n')
    run = read(tmp_path)
    assert (len(run.rows), run.sites, len(run.events)) == (1, (), 1)


def test_what_only_bears_the_name_of_a_file_is_left_out(tmp_path: Path) -> None:
    for name in ("meta.json", "events.jsonl", "steps.000001.l0.jsonl"):
        (tmp_path / name).mkdir()
    (tmp_path / "steps.jsonl").write_text(line_of(row(3)))
    assert len(read(tmp_path).rows) == len(Tail(tmp_path).look().rows) == 1


def test_sites_are_read_up_to_the_first_that_is_none(tmp_path: Path) -> None:
    sites = [{"name": "a", "role": "weight"}, {"name": "b", "role": "ghost"}, {"name": "c"}]
    (tmp_path / "meta.json").write_text(json.dumps({"sites": sites}))
    assert read(tmp_path).sites == (Site("a", "weight"),)


# --- What may go wrong ---------------------------------------------------------------------------

CHILD = """
import sys, time
import numpy as np
from steadygrad.core.steps import Row
from steadygrad.core.store import create
writer = create(sys.argv[1], "x", print)
print("ready", flush=True)
step = 0
while True:
    writer.add(Row(step, time.time() % 1e6, {"grad": np.ones(300, np.float32)}))
    step += 1
    time.sleep(float(sys.argv[2]))
"""


@pytest.mark.parametrize("pause", [0.001, 0.1])
def test_a_kill_loses_two_seconds_at_most(tmp_path: Path, pause: float) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-c", CHILD, str(run), str(pause)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        _until(lambda: len(read(run).rows) > 0)
        began = read(run).rows[-1].seconds
        _until(lambda: time.time() % 1e6 > began + 1.7)
        killed = time.time() % 1e6
        child.kill()
    rows = read(run).rows
    assert killed - rows[-1].seconds < 2.0
    assert [one.step for one in rows] == list(range(len(rows)))


FULL = """
import resource, sys
import numpy as np
from steadygrad.core.steps import Row
from steadygrad.core.store import create
said = []
writer = create(sys.argv[1], "x", said.append)
writer.meta({"a": 1})
writer.flush()
def add(steps):
    for step in steps:
        writer.add(Row(step, 0.0, {"grad": np.full(300, 0.123, np.float32)}))
    writer.flush()
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
add(range(20))
add(range(20, 40))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
add(range(40, 43))
writer.close()
print(len(said), said)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on this system")
def test_a_full_disk_is_said_once_and_tears_no_later_line(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("1 ['expected to write the run to "), done.stdout
    assert done.stderr == ""
    steps = [one.step for one in read(tmp_path / "run").rows]
    assert steps[0] == 0
    assert steps[-3:] == [40, 41, 42]
    assert len(steps) < 10


def test_a_place_that_cannot_be_written_is_said_once(tmp_path: Path, said: list[str]) -> None:
    (tmp_path / "file").write_text("")
    made = create(tmp_path / "file" / "run", "x", said.append)
    made.add(row(0))
    made.event({"step": 0, "kind": "x"})
    assert made.incident(3) is None
    made.close()
    assert len(said) == 1
    assert str(tmp_path / "file") in said[0]


def test_a_directory_removed_meanwhile_is_said_once(writer: Writer, said: list[str]) -> None:
    writer.add(row(0))
    writer.flush()
    writer.path.rename(writer.path.with_name("moved"))
    for step in range(3):
        writer.add(row(step))
        writer.flush()
    assert writer.incident(1) is None
    assert len(said) == 1
    assert not writer.path.exists()


def test_a_fault_of_ours_is_said_and_ends_nothing(writer: Writer, said: list[str]) -> None:
    writer.add(Row(0, 0.0, {"grad": None}))  # type: ignore[dict-item] - the fault
    writer.flush()
    writer.add(row(1))
    writer.flush()
    assert len(said) == 1
    assert [one.step for one in read(writer.path).rows] == [1]


FORK = """
import os, sys
import numpy as np
from steadygrad.core.steps import Row
from steadygrad.core.store import create
writer = create(sys.argv[1], "x", print)
writer.add(Row(0, 0.0, {"grad": np.ones(3, np.float32)}))
child = os.fork()
if not child:
    writer.add(Row(1, 0.0, {"grad": np.ones(3, np.float32)}))
    writer.event({"step": 1, "kind": "child"})
    assert writer.incident(1) is None
    assert not writer.flush()
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
writer.add(Row(2, 0.0, {"grad": np.ones(3, np.float32)}))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_writes_nothing_and_exit_flushes(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORK, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr == ""
    run = read(tmp_path / "run")
    assert [one.step for one in run.rows] == [0, 2]
    assert [one["kind"] for one in run.events] == ["end"]


# --- Size ----------------------------------------------------------------------------------------


def _synthetic(step: int, generator: np.random.Generator, count: int) -> Row:
    """A row of so many parameters: gradients, and in every 20th step all the rest."""
    names = ("grad", *SAMPLED, *OF_OUTPUT) if step % 20 == 0 else ("grad",)
    sizes = 10.0 ** generator.uniform(-6, 1, (len(names), count))
    read = dict(zip(names, sizes.astype(np.float32), strict=True))
    return Row(step, step / 8, {"loss": np.float32([2.0]), **read})


def test_a_thousand_steps_of_300_parameters_take_five_megabytes(writer: Writer) -> None:
    generator = np.random.default_rng(0)
    for step in range(1000):
        writer.add(_synthetic(step, generator, 300))
    writer.close()
    assert _bytes(writer.path) <= 5_000_000
    assert len(read(writer.path).rows) == 1000


def test_a_long_run_stays_small(tmp_path: Path, said: list[str]) -> None:
    """Scaled down by 100: 3 parameters and segments of 20 kB instead of 300 and 2 MB."""
    writer = create(tmp_path / "run", "x", said.append, segment=20_000)
    generator = np.random.default_rng(0)
    largest = 0
    for step in range(20_000):
        writer.add(_synthetic(step, generator, 3))
        if step % 500 == 0:
            writer.flush()
            largest = max(largest, _bytes(writer.path))
    writer.close()
    assert said == []
    assert largest <= 500_000
    rows = read(writer.path).rows
    assert [one.step for one in rows] == sorted(one.step for one in rows)
    assert (rows[0].step, rows[-1].step) == (0, 19_999)
    assert {one.kind for one in rows} == {"step", "min", "median", "max"}


def test_a_crash_while_decimating_doubles_nothing(tmp_path: Path, said: list[str]) -> None:
    writer = create(tmp_path / "run", "x", said.append, segment=2_000)
    for step in range(300):
        writer.add(row(step))
    writer.close()
    before = [(one.step, one.kind) for one in read(writer.path).rows]
    of_old = segments(writer.path)[0]
    for number in range(of_old.first, of_old.last + 1):  # the files of which the oldest was made
        (writer.path / f"steps.{number:06}.l0.jsonl").write_text(line_of(row(number)))
    (writer.path / ".steps.000001-000009.l1.jsonl.new").write_text(line_of(row(1)))
    assert [(one.step, one.kind) for one in read(writer.path).rows] == before


def test_a_follower_sees_each_row_once(tmp_path: Path, said: list[str]) -> None:
    writer = create(tmp_path / "run", "x", said.append, segment=1_000)
    tail = Tail(writer.path)
    assert tail.look().rows == ()
    for step in range(40):
        writer.add(row(step))
        writer.event({"step": step, "kind": "a"})
        writer.flush()
        assert [one.step for one in tail.look().rows] == list(range(step + 1))
        assert len(tail.look().events) == step + 1
    writer.close()


def test_a_follower_that_slept_reads_what_was_decimated(tmp_path: Path, said: list[str]) -> None:
    writer = create(tmp_path / "run", "x", said.append, segment=1_000)
    tail = Tail(writer.path)
    for many in (7, 600, 5):
        for step in range(many):
            writer.add(row(step))
        writer.flush()
        seen, stored = tail.look().rows, read(writer.path).rows
        assert [(a.step, a.kind) for a in seen] == [(b.step, b.kind) for b in stored]
    writer.close()


def test_a_follower_waits_for_the_rest_of_a_line(tmp_path: Path) -> None:
    line = line_of(row(0))
    (tmp_path / "steps.jsonl").write_text(line[:20])
    tail = Tail(tmp_path)
    assert tail.look().rows == ()
    (tmp_path / "steps.jsonl").write_text(line)
    assert len(tail.look().rows) == 1


def _bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir() if path.is_file())


def _until(happened: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "waited too long"
        threading.Event().wait(0.01)
