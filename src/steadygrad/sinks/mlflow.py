"""Show a run in MLflow, as a run of its own."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

from steadygrad.core.finding import Finding
from steadygrad.sinks.sink import heading

try:
    from mlflow import MlflowClient
    from mlflow.entities import Metric
except ImportError:
    raise ImportError(
        "expected mlflow, which writes to MLflow, got none: pip install 'steadygrad[mlflow]'"
    ) from None

TOGETHER = 1000  # metrics that MLflow takes at a time
LONGEST = 5000  # characters of a tag's value, of which some stores take no more
UNNAMEABLE = re.compile(r"[^\w\-./: ]")  # in names of metrics and tags


class MLflow:
    """Logs to a run beside yours, without making it the active one; findings are tags.

    Without a `uri`, it goes where MLflow would log to.
    """

    def __init__(self, experiment: str = "steadygrad", uri: str | None = None) -> None:
        self._experiment, self._uri = experiment, uri
        self._client: Any = None  # an MlflowClient, whose package has no part in our types
        self._run = ""

    def open(self, name: str) -> None:
        """Begin a run, in an experiment that is made where there is none."""
        client = self._client = MlflowClient(self._uri)
        known = client.get_experiment_by_name(self._experiment)
        home = known.experiment_id if known else client.create_experiment(self._experiment)
        self._run = client.create_run(home, run_name=name or None).info.run_id

    def row(self, step: int, numbers: Mapping[str, float]) -> None:
        """Log the numbers of a step."""
        now = int(time.time() * 1000)
        metrics = [Metric(_named(name), value, now, step) for name, value in numbers.items()]
        for start in range(0, len(metrics), TOGETHER):
            self._client.log_batch(self._run, metrics=metrics[start : start + TOGETHER])

    def finding(self, found: Finding) -> None:
        """Set a tag: MLflow has no alerts."""
        self._client.set_tag(self._run, _named(heading(found)), found.says[:LONGEST])

    def close(self) -> None:
        """Say that the run has ended."""
        self._client.set_terminated(self._run)


def _named(name: str) -> str:
    """Return a name that MLflow takes."""
    return UNNAMEABLE.sub("_", name)
