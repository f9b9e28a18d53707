"""Show a run in Weights & Biases, as a run of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from steadygrad.core.finding import Finding, Severity
from steadygrad.sinks.sink import heading

try:
    import wandb
except ImportError:
    raise ImportError(
        "expected wandb, which writes to Weights & Biases, got none: "
        "pip install 'steadygrad[wandb]'"
    ) from None

LEVELS = {Severity.risk: "WARN", Severity.broken: "ERROR"}


class Wandb:
    """Logs to a run beside yours, whose steps stay yours; findings are alerts.

    W&B takes no step that is below one it has seen, and counts each log as a step: in your own run,
    ours would push yours aside. The arguments are those of `wandb.init`: project, group, mode.
    """

    def __init__(self, project: str = "steadygrad", **init: Any) -> None:  # as wandb's own
        self._init = {"project": project, **init}
        self._run: Any = None  # a wandb.Run, whose package has no part in our types

    def open(self, name: str) -> None:
        """Begin a run, and leave yours the current one."""
        quiet = wandb.Settings(console="off", silent=True, disable_git=True, save_code=False)
        given = {"name": name or None, "settings": quiet, **self._init}
        self._run = wandb.init(**given, reinit="create_new")

    def row(self, step: int, numbers: Mapping[str, float]) -> None:
        """Log the numbers of a step."""
        self._run.log(dict(numbers), step=step)

    def finding(self, found: Finding) -> None:
        """Send an alert; W&B mails it, or posts it to Slack, if you have told it to."""
        self._run.alert(heading(found), found.says, level=LEVELS[found.severity])

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()
