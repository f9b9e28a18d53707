"""See, explain, stop and cure unhealthy gradients in PyTorch.

Names are imported when they are first used, so that reading a report never imports torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = ["Finding", "Record", "Report", "Site", "__version__", "check"]

_HOMES = {
    "Finding": "steadygrad.core.finding",
    "Record": "steadygrad.core.record",
    "Report": "steadygrad.core.report",
    "Site": "steadygrad.core.record",
    "check": "steadygrad._check",
}

if TYPE_CHECKING:
    from steadygrad._check import check
    from steadygrad.core.finding import Finding
    from steadygrad.core.record import Record, Site
    from steadygrad.core.report import Report
else:  # a type checker that saw __getattr__ would accept every name

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        found = getattr(import_module(_HOMES[name]), name)
        globals()[name] = found
        return found

    def __dir__() -> list[str]:
        return __all__
