"""Run all benchmarks, or those that are named."""

from __future__ import annotations

import importlib
import sys

NAMES = (
    "patients",
    "trainings",
    "zoo",
    "faults",
    "depth",
    "cost",
    "start",
    "ground_truth",
    "guards",
    "distributed",
    "toy",
    "watch",
    "sinks",
    "cause",
    "cure",
    "numerics",
    "lab",
)


def main(arguments: list[str]) -> int:
    unknown = [name for name in arguments if name not in NAMES]
    if unknown:
        print(f"expected some of {', '.join(NAMES)}, got {', '.join(unknown)}", file=sys.stderr)
        return 2
    for name in arguments or NAMES:
        importlib.import_module(f"bench.{name}").run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
