"""The sinks that a command knows by name."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from steadygrad.sinks.sink import Sink


def _tensorboard() -> Sink:
    from steadygrad.sinks.tensorboard import TensorBoard

    return TensorBoard(Path("tb", time.strftime("%Y%m%d-%H%M%S")))


def _wandb() -> Sink:
    from steadygrad.sinks.wandb import Wandb

    return Wandb()


def _mlflow() -> Sink:
    from steadygrad.sinks.mlflow import MLflow

    return MLflow()


def _trackio() -> Sink:
    from steadygrad.sinks.trackio import Trackio

    return Trackio()


SINKS: Mapping[str, Callable[[], Sink]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
    "trackio": _trackio,
}
"""Each makes a sink as it is without arguments; raises ImportError without its package."""
