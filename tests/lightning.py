"""A Lightning trainer that keeps quiet, and writes nothing."""

from __future__ import annotations

from typing import Any


def lightning_trainer(**settings: Any) -> Any:
    import pytorch_lightning as pl

    return pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
