"""Watch a Trainer of PyTorch Lightning."""

from __future__ import annotations

from typing import Any

from steadygrad._watch import Watch
from steadygrad.integrations.hosted import Hosted

try:
    from pytorch_lightning import Callback, LightningModule, Trainer
except ImportError:
    raise ImportError(
        "expected pytorch_lightning, whose Trainer this watches, got none: "
        "pip install 'steadygrad[lightning]'"
    ) from None


class SteadygradCallback(Callback):  # type: ignore[misc]  # an extra, untyped for us
    """Watch each `fit` of a Trainer, and show a report when it ends, also by an exception.

    It takes what `sg.watch` takes: `run`, `overhead`, `to`; and `show`, a function of the report.
    """

    def __init__(self, **plan: Any) -> None:  # as Hosted's own
        super().__init__()
        self._hosted = Hosted(**plan)

    @property
    def watch(self) -> Watch | None:
        """The watch of the training that goes on or was last."""
        return self._hosted.watch

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to watch."""
        self._hosted.begin(pl_module, trainer.optimizers)

    def on_train_end(self, _trainer: Trainer, _module: LightningModule) -> None:
        """End the watch, and show its report."""
        self._hosted.end()

    def on_exception(
        self, _trainer: Trainer, _module: LightningModule, exception: BaseException
    ) -> None:
        """End the watch, and look for the cause of what was raised."""
        self._hosted.end(exception)
