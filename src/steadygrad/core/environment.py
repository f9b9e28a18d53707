"""What a run or a report was made with: versions, asked of the packages' own metadata."""

from __future__ import annotations

import importlib.util
import platform
import re
from importlib import metadata

OLDEST = (2, 4)  # of torch: what pyproject.toml asks for
NAMED = ("steadygrad", "torch", "numpy", "transformers", "accelerate", "pytorch-lightning", "timm")
"""What has a say in gradients; a package that is not installed is left out."""


def versions() -> dict[str, str]:
    """Return the versions by name; nothing is imported for it."""
    found = {"python": platform.python_version()}
    found |= {name: one for name in NAMED if (one := version(name))}
    return {**found, "platform": platform.platform(terse=True)}


def version(package: str) -> str:
    """Return the version of a package; empty where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def expect_torch() -> None:
    """Raise ImportError where torch is missing or too old; torch itself is not imported."""
    found = version("torch")
    if not found and importlib.util.find_spec("torch") is None:
        raise ImportError(
            "expected torch, got none: `pip install torch` gets it, in the build that you want"
        )
    numbers = tuple(int(one) for one in re.findall(r"\d+", found)[:2])
    if numbers and numbers < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise ImportError(
            f"expected torch {oldest} or later, got {found}: `pip install --upgrade torch` gets it"
        )
