"""What a run or a report was made with: versions, asked of the packages' own metadata."""

from __future__ import annotations

import platform
from importlib import metadata

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
