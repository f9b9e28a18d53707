"""Show a run in Trackio, as a run of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from steadygrad.core.finding import Finding, Severity
from steadygrad.sinks.sink import heading

try:
    import trackio
except ImportError:
    raise ImportError(
        "expected trackio, which writes to Trackio, got none: pip install 'steadygrad[trackio]'"
    ) from None

LEVELS = {Severity.risk: trackio.AlertLevel.WARN, Severity.broken: trackio.AlertLevel.ERROR}
QUIET = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}


class Trackio:
    """Logs to a run beside yours; findings are alerts. Trackio says on stdout what it does.

    The arguments are those of `trackio.init`: project, space_id, webhook_url.
    """

    def __init__(self, project: str = "steadygrad", **init: Any) -> None:  # as trackio's own
        self._init = {"project": project, **QUIET, **init}
        self._run: Any = None  # a trackio.Run, whose package has no part in our types

    def open(self, name: str) -> None:
        """Begin a run; yours stays the current one, as a thread has its own."""
        yours = trackio.config
        self._run = trackio.init(**{"name": name or None, **self._init})
        trackio.config = yours

    def row(self, step: int, numbers: Mapping[str, float]) -> None:
        """Log the numbers of a step."""
        self._run.log(dict(numbers), step=step)

    def finding(self, found: Finding) -> None:
        """Send an alert."""
        level, step = LEVELS[found.severity], found.steps[0]
        self._run.alert(heading(found), found.says, level=level, step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()
