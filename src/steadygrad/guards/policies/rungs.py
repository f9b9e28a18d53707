"""The policies joined: clip, skip, back off, roll back, stop."""

from __future__ import annotations

from collections.abc import Sequence

from steadygrad.guards.policies.back import rollback
from steadygrad.guards.policies.backoff import lr_backoff
from steadygrad.guards.policies.nonfinite import skip_nonfinite
from steadygrad.guards.policies.norm import clip_norm
from steadygrad.guards.policies.outlier import skip_outlier
from steadygrad.guards.policies.snapshot import Stateful
from steadygrad.guards.policies.stop import stop_after
from steadygrad.guards.policy import Policy


def ladder(
    max_norm: float = 1.0,
    *,
    others: Sequence[Stateful] = (),
    patience: int = 3,
    offload: bool = False,
) -> tuple[Policy, ...]:
    """Policies for a long run that nobody watches, each one taking over where the last failed.

    Every step is clipped to `max_norm`; a step that is not finite or far outside is skipped; two
    skips in a row halve the learning rate; `patience` go back to a snapshot; and ten times as many
    stop the run. `others` are the states to go back beside the optimizer's: scheduler, GradScaler.

        sg.guard(optimizer, *sg.ladder(1.0, others=[scheduler]), model=model)
    """
    return (
        skip_nonfinite(),
        skip_outlier(),
        clip_norm(max_norm),
        lr_backoff(after=2),
        rollback(after=patience, others=others, offload=offload),
        stop_after(10 * patience),
    )
