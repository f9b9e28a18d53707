"""One policy a file, and this tuple of them all."""

from __future__ import annotations

from steadygrad.guards.policies.adagc import clip_adagc
from steadygrad.guards.policies.agc import clip_agc
from steadygrad.guards.policies.back import rollback
from steadygrad.guards.policies.backoff import lr_backoff
from steadygrad.guards.policies.nonfinite import skip_nonfinite
from steadygrad.guards.policies.norm import clip_norm
from steadygrad.guards.policies.outlier import skip_outlier
from steadygrad.guards.policies.quantile import clip_quantile
from steadygrad.guards.policies.stop import stop_after
from steadygrad.guards.policies.value import clip_value
from steadygrad.guards.policies.zscore import clip_zscore
from steadygrad.guards.policy import Policy

POLICIES: tuple[type[Policy], ...] = (
    clip_norm,
    clip_value,
    clip_agc,
    clip_quantile,
    clip_zscore,
    clip_adagc,
    skip_nonfinite,
    skip_outlier,
    stop_after,
    lr_backoff,
    rollback,
)
