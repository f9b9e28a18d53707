"""Write a run as Parquet: a column for each metric and place."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from steadygrad.core.stored import Stored
from steadygrad.core.whole import whole
from steadygrad.export.columns import columns, index

MISSING = (
    "expected pyarrow, which writes Parquet, got none: pip install 'steadygrad[parquet]', or write "
    "CSV with --to csv"
)


def parquet(run: Stored, path: Path) -> None:
    """Write a run to a file; what was not read is null. Raises ImportError without pyarrow."""
    try:
        import pyarrow
        from pyarrow import parquet as files
    except ImportError:
        raise ImportError(MISSING) from None
    steps, seconds, kinds = index(run)
    arrays = {"step": steps, "seconds": seconds, "kind": pyarrow.array(kinds).dictionary_encode()}
    for name, one in columns(run).items():
        arrays[name] = pyarrow.array(one, mask=np.isnan(one))
    with whole(path) as written:
        files.write_table(pyarrow.table(arrays), written, compression="zstd")
