"""Print a table and write it to bench/results with what is needed to repeat it."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"
Row = Sequence[object]


def markdown(header: Sequence[str], rows: Sequence[Row]) -> str:
    """Lay out rows as a Markdown table."""
    cells = [[_cell(value) for value in row] for row in (header, ["---"] * len(header), *rows)]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


def publish(name: str, title: str, parts: Sequence[str]) -> None:
    """Print the parts of a result and write them to bench/results/NAME.md."""
    body = "\n\n".join(parts)
    text = f"# {title}\n\n{_circumstances(name)}\n\n{body}\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text)
    print(f"\n{title}\n\n{body}\n", flush=True)


def _cell(value: object) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _circumstances(name: str) -> str:
    today = datetime.datetime.now(datetime.UTC).date()
    return (
        f"`python -m bench {name}` on {_processor()}, {os.cpu_count()} cores "
        f"({torch.get_num_threads()} used), Python {platform.python_version()}, "
        f"torch {torch.__version__}, {today}"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
