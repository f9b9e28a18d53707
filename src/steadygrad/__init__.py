"""See, explain, stop and cure unhealthy gradients in PyTorch.

Names are imported when they are first used, so that reading a report never imports torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "Decision",
    "Event",
    "Finding",
    "Gradients",
    "Handle",
    "Policy",
    "Record",
    "Report",
    "Setup",
    "Site",
    "TrainingStopped",
    "Watch",
    "__version__",
    "check",
    "clip_adagc",
    "clip_agc",
    "clip_norm",
    "clip_quantile",
    "clip_value",
    "clip_zscore",
    "cure",
    "guard",
    "ladder",
    "lr_backoff",
    "rollback",
    "skip_nonfinite",
    "skip_outlier",
    "stop_after",
    "watch",
]

_HOMES = {
    "Decision": "steadygrad.guards.gradients",
    "Event": "steadygrad.guards.policy",
    "Finding": "steadygrad.core.finding",
    "Gradients": "steadygrad.guards.gradients",
    "Handle": "steadygrad._guard",
    "Policy": "steadygrad.guards.policy",
    "Record": "steadygrad.core.record",
    "Report": "steadygrad.core.report",
    "Setup": "steadygrad._cure",
    "Site": "steadygrad.core.record",
    "TrainingStopped": "steadygrad.guards.policies.stop",
    "Watch": "steadygrad._watch",
    "check": "steadygrad._check",
    "clip_adagc": "steadygrad.guards.policies.adagc",
    "clip_agc": "steadygrad.guards.policies.agc",
    "clip_norm": "steadygrad.guards.policies.norm",
    "clip_quantile": "steadygrad.guards.policies.quantile",
    "clip_value": "steadygrad.guards.policies.value",
    "clip_zscore": "steadygrad.guards.policies.zscore",
    "cure": "steadygrad._cure",
    "guard": "steadygrad._guard",
    "ladder": "steadygrad.guards.policies.rungs",
    "lr_backoff": "steadygrad.guards.policies.backoff",
    "rollback": "steadygrad.guards.policies.back",
    "skip_nonfinite": "steadygrad.guards.policies.nonfinite",
    "skip_outlier": "steadygrad.guards.policies.outlier",
    "stop_after": "steadygrad.guards.policies.stop",
    "watch": "steadygrad._watch",
}

if TYPE_CHECKING:
    from steadygrad._check import check
    from steadygrad._cure import Setup, cure
    from steadygrad._guard import Handle, guard
    from steadygrad._watch import Watch, watch
    from steadygrad.core.finding import Finding
    from steadygrad.core.record import Record, Site
    from steadygrad.core.report import Report
    from steadygrad.guards.gradients import Decision, Gradients
    from steadygrad.guards.policies.adagc import clip_adagc
    from steadygrad.guards.policies.agc import clip_agc
    from steadygrad.guards.policies.back import rollback
    from steadygrad.guards.policies.backoff import lr_backoff
    from steadygrad.guards.policies.nonfinite import skip_nonfinite
    from steadygrad.guards.policies.norm import clip_norm
    from steadygrad.guards.policies.outlier import skip_outlier
    from steadygrad.guards.policies.quantile import clip_quantile
    from steadygrad.guards.policies.rungs import ladder
    from steadygrad.guards.policies.stop import TrainingStopped, stop_after
    from steadygrad.guards.policies.value import clip_value
    from steadygrad.guards.policies.zscore import clip_zscore
    from steadygrad.guards.policy import Event, Policy
else:  # a type checker that saw __getattr__ would accept every name

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        try:
            found = getattr(import_module(_HOMES[name]), name)
        except (ImportError, AttributeError):
            from steadygrad.core.environment import expect_torch

            expect_torch()
            raise
        globals()[name] = found
        return found

    def __dir__() -> list[str]:
        return __all__
