"""Every sink shows what was read, and its own package reads it back."""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from steadygrad.testing import Shown, check_sink

pytestmark = pytest.mark.filterwarnings("ignore")  # those of the trackers' own imports


def test_tensorboard(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from steadygrad.sinks.tensorboard import TensorBoard

    def read_back() -> Shown:
        kept = reader.EventAccumulator(str(tmp_path / "tb"), {"scalars": 0, "tensors": 0})
        kept.Reload()
        rows: dict[int, dict[str, float]] = defaultdict(dict)
        for name in kept.Tags()["scalars"]:
            for one in kept.Scalars(name):
                rows[one.step][name] = one.value
        plugin = kept.SummaryMetadata(kept.Tags()["tensors"][0]).plugin_data
        assert plugin.plugin_name == "text"
        texts = {n: kept.Tensors(n)[0].tensor_proto for n in kept.Tags()["tensors"]}
        found = {n.removeprefix("findings/"): t.string_val[0].decode() for n, t in texts.items()}
        return Shown(rows, found)

    check_sink(TensorBoard(tmp_path / "tb"), read_back)


def test_wandb(tmp_path: Path) -> None:
    """In a process of its own, as a user has it: W&B keeps state and a service for each process."""
    pytest.importorskip("wandb", reason="pip install 'steadygrad[wandb]'")
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "tests.sinks.worker_wandb", str(tmp_path)],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="pip install 'steadygrad[mlflow]'")
    from steadygrad.sinks.mlflow import MLflow

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # the other store wants a database
    uri = (tmp_path / "mlruns").as_uri()

    def read_back() -> Shown:
        client = mlflow.MlflowClient(uri)
        home = client.get_experiment_by_name("steadygrad").experiment_id
        (run,) = client.search_runs([home])
        assert run.info.status == "FINISHED"
        assert run.info.run_name == "contract"
        rows: dict[int, dict[str, float]] = defaultdict(dict)
        for name in run.data.metrics:
            for one in client.get_metric_history(run.info.run_id, name):
                rows[one.step][name] = one.value
        return Shown(rows, {k: v for k, v in run.data.tags.items() if k[:1] == "G"})

    check_sink(MLflow(uri=uri), read_back)
    assert mlflow.active_run() is None


def test_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    trackio = pytest.importorskip("trackio", reason="pip install 'steadygrad[trackio]'")
    from steadygrad.sinks.trackio import Trackio

    before = trackio.config

    def read_back() -> Shown:
        from trackio.sqlite_storage import SQLiteStorage

        rows = {}
        for one in SQLiteStorage.get_logs("ours", "contract"):
            named = {k: v for k, v in one.items() if k not in ("step", "timestamp")}
            rows[one["step"]] = named
        alerts = SQLiteStorage.get_alerts("ours")
        return Shown(rows, {one["title"]: one["text"] for one in alerts})

    check_sink(Trackio("ours"), read_back)
    assert trackio.config is before
    assert trackio.context_vars.current_run.get() is None
