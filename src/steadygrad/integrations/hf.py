"""Watch a Trainer of Hugging Face transformers, and those of TRL, which are such."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from steadygrad._watch import Watch
from steadygrad.integrations.hosted import Hosted

try:
    from transformers import TrainerCallback
except ImportError:
    raise ImportError(
        "expected transformers, whose Trainer this watches, got none: pip install 'steadygrad[hf]'"
    ) from None


class SteadygradCallback(TrainerCallback):  # type: ignore[misc]  # an extra, untyped for us
    """Watch each training of a Trainer, and show a report when it ends.

    It takes what `sg.watch` takes: `run`, `overhead`, `to`; and `show`, a function of the report.
    The losses and norms that it reads are those of the training, before clipping. The Trainer's own
    log is another thing: by default (`logging_nan_inf_filter`) a loss that is NaN counts there as
    the mean of the others, so that a broken run shows 0.0. The report says so, as G503.
    """

    def __init__(self, **plan: Any) -> None:  # as Hosted's own
        self._hosted = Hosted(**plan)

    @property
    def watch(self) -> Watch | None:
        """The watch of the training that goes on or was last."""
        return self._hosted.watch

    def on_train_begin(
        self,
        _args: object,
        _state: object,
        _control: object,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        **_kwargs: object,
    ) -> None:
        """Start to watch."""
        self._hosted.begin(model, [optimizer])

    def on_train_end(
        self, _args: object, _state: object, _control: object, **_kwargs: object
    ) -> None:
        """End the watch, and show its report."""
        self._hosted.end()
