"""Show a run in Weights & Biases beside one of the user's, offline, and read both back."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import wandb

from steadygrad.sinks.wandb import Wandb
from steadygrad.testing import Shown, check_sink
from tests.sinks.wandb_log import records

PATIENCE = 20.0  # seconds: W&B's own process may still be writing when `finish` has returned


def main(home: Path) -> None:
    """Keep the contract of sinks; the user's run stays the current one, and its steps its own."""
    quiet = wandb.Settings(silent=True, console="off")
    yours = wandb.init(project="yours", mode="offline", dir=str(home), settings=quiet)
    yours.log({"loss": 1.0})
    (home / "ours").mkdir()
    sink = Wandb("ours", mode="offline", dir=str(home / "ours"))
    check_sink(sink, lambda: read_back(home / "ours"))
    assert wandb.run is yours
    assert yours.step == 1
    yours.finish()


def read_back(home: Path) -> Shown:
    """Read rows and alerts from the file of the only run, once there are some."""
    end = time.monotonic() + PATIENCE
    while not (shown := _read(home)).rows and time.monotonic() < end:
        time.sleep(0.2)
    return shown


def _read(home: Path) -> Shown:
    rows, found = {}, {}
    (path,) = home.glob("wandb/offline-run-*/*.wandb")
    for record in records(path):
        if record.HasField("history"):
            pairs = {".".join(i.nested_key) or i.key: i.value_json for i in record.history.item}
            step = record.history.step.num
            rows[step] = {n: float(v) for n, v in pairs.items() if not n.startswith("_")}
        if record.HasField("alert"):
            found[record.alert.title] = record.alert.text
    return Shown(rows, found)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
