"""The formats that a run can be written in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from steadygrad.core.stored import Stored
from steadygrad.export.csv import csv
from steadygrad.export.parquet import parquet
from steadygrad.export.tensorboard import tensorboard

FORMATS: Mapping[str, Callable[[Stored, Path], None]] = {
    "csv": csv,
    "parquet": parquet,
    "tensorboard": tensorboard,
}
"""Each writes a run to a path: a file, or for TensorBoard a directory."""
