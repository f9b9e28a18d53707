"""Guards inside loops that others own: Lightning, Accelerate, and the Hugging Face Trainer."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import steadygrad as sg
from tests.lightning import lightning_trainer

BAD = 2  # the batch that is not finite


def batches() -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    found = [torch.randn(8, 4, generator=draw) for _ in range(5)]
    found[BAD] = found[BAD] * math.nan
    return found


def is_finite(model: nn.Module) -> bool:
    return all(bool(torch.isfinite(one).all()) for one in model.parameters())


def test_lightning_runs_backward_inside_the_step(tmp_path: Path) -> None:
    import pytorch_lightning as pl

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(4, 1)
            self.handle: sg.Handle | None = None

        def training_step(self, batch: Tensor, _: int) -> Tensor:
            loss: Tensor = self.net(batch).square().mean()
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            optimizer = torch.optim.AdamW(self.parameters(), 0.1)
            self.handle = sg.guard(
                optimizer, sg.skip_nonfinite(), sg.clip_norm(0.01), model=self, strict=True
            )
            return optimizer

    module = Module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's own, about workers and loggers
        trainer = lightning_trainer(
            max_epochs=1,
            default_root_dir=tmp_path,
        )
        trainer.fit(module, torch.utils.data.DataLoader(batches(), batch_size=None))
    assert module.handle is not None
    events = list(module.handle.history)
    assert [one.skipped for one in events] == [number == BAD for number in range(5)]
    assert all(one.clipped for one in events if not one.skipped)
    assert events[BAD].suspects[0][0] == "net.weight"
    assert is_finite(module)


@pytest.mark.parametrize("before", [True, False])
def test_accelerate_wraps_the_optimizer(before: bool) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=1)
    model = nn.Linear(4, 1)
    optimizer: Any = torch.optim.AdamW(model.parameters(), 0.1)
    handle = sg.guard(optimizer, strict=True) if before else None
    model, optimizer = accelerator.prepare(model, optimizer)
    handle = handle or sg.guard(optimizer, strict=True)
    for one in batches():
        optimizer.zero_grad()
        accelerator.backward(model(one).square().mean())
        optimizer.step()
    assert [one.skipped for one in handle.history] == [number == BAD for number in range(5)]
    assert is_finite(model)


def test_the_trainer_of_transformers_takes_a_guarded_optimizer(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    config = GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=32, n_positions=16)
    model = GPT2LMHeadModel(config)
    tokens = [
        {"input_ids": torch.arange(8) + number, "labels": torch.arange(8) + number}
        for number in range(8)
    ]
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    handle = sg.guard(optimizer, sg.skip_nonfinite(), sg.clip_norm(0.1), model=model, strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the Trainer's own, about pinned memory
        trainer = Trainer(
            model,
            TrainingArguments(
                str(tmp_path),
                per_device_train_batch_size=2,
                max_steps=4,
                max_grad_norm=0.0,
                report_to=[],
                save_strategy="no",
                use_cpu=True,
                disable_tqdm=True,
            ),
            train_dataset=tokens,
            optimizers=(optimizer, None),
        )
        trainer.train()
    assert len(handle.history) == 4
    assert all(one.clipped for one in handle.history)
    assert handle.history[0].suspects[0][0] in dict(model.named_parameters())
