"""A training inside of a host reads as a plain loop does: one mechanism, whoever starts it."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import steadygrad as sg
from steadygrad._watch import is_first_rank
from steadygrad.core.record import Record
from steadygrad.core.report import Report
from steadygrad.integrations.hosted import Hosted
from tests.lightning import lightning_trainer
from tests.sinks.wandb_log import records

STEPS, SIZE, RATE, LIMIT = 12, 4, 1e-2, 0.5
Inputs = tuple[Tensor, Tensor]


class Net(nn.Module):
    """A classifier that computes its own loss, as models of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.body(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def data(broken: int = -1) -> list[dict[str, Tensor]]:
    """Samples in order; those of a broken step are NaN."""
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(STEPS * SIZE, 8, generator=draw)
    labels = x[:, :3].argmax(1)
    if broken >= 0:
        x[broken * SIZE] = float("nan")
    return [{"x": one, "labels": label} for one, label in zip(x, labels, strict=True)]


def batches(broken: int = -1) -> DataLoader[dict[str, Tensor]]:
    return DataLoader(data(broken), SIZE)


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def plain() -> Record:
    """What a hand-written loop reads."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    with sg.watch(model, optimizer) as watch:
        for batch in batches():
            optimizer.zero_grad()
            model(**batch)["loss"].backward()
            nn.utils.clip_grad_norm_(model.parameters(), LIMIT)
            optimizer.step()
    return watch.record


def by_accelerate() -> Record:
    """What is read under an Accelerator, which needs no callback."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    model, optimizer, loader = accelerator.prepare(model, optimizer, batches())
    with sg.watch(model, optimizer) as watch:
        for batch in loader:
            optimizer.zero_grad()
            accelerator.backward(model(**batch)["loss"])
            accelerator.clip_grad_norm_(model.parameters(), LIMIT)
            optimizer.step()
    return watch.record


def trainer_of_transformers(callback: Any, path: Path, broken: int = -1, **more: Any) -> Any:
    import transformers as hf

    class InOrder(hf.Trainer):
        def _get_train_sampler(self, *_: object) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    model = net()
    arguments = hf.TrainingArguments(
        str(path),
        num_train_epochs=1,
        per_device_train_batch_size=SIZE,
        max_grad_norm=LIMIT,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=1,
    )
    given = torch.optim.SGD(model.parameters(), RATE)
    rates = torch.optim.lr_scheduler.ConstantLR(given, 1.0)
    return InOrder(
        model=model,
        args=arguments,
        train_dataset=data(broken),
        optimizers=(given, rates),
        callbacks=[callback],
        **more,
    )


def by_transformers(path: Path, reports: list[Report]) -> Record:
    from steadygrad.integrations.hf import SteadygradCallback

    callback = SteadygradCallback(show=reports.append)
    trainer_of_transformers(callback, path).train()
    return callback.watch.record


class Lit:
    """Makes a module of Lightning around the network."""

    @staticmethod
    def module() -> Any:
        import pytorch_lightning as pl

        class Module(pl.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.body = net().body

            def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
                return F.cross_entropy(self.body(batch["x"]), batch["labels"])

            def configure_optimizers(self) -> Any:
                return torch.optim.SGD(self.parameters(), RATE)

        return Module()


def by_lightning(path: Path, reports: list[Report]) -> Record:
    from steadygrad.integrations.lightning import SteadygradCallback

    callback = SteadygradCallback(show=reports.append)
    trainer_of_lightning(callback).fit(Lit.module(), batches())
    return callback.watch.record


def trainer_of_lightning(callback: Any) -> Any:
    return lightning_trainer(
        max_epochs=1,
        gradient_clip_val=LIMIT,
        callbacks=[callback],
    )


@pytest.fixture(autouse=True)
def quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the hosts' own
        yield


def same(read: Record) -> None:
    """Assert that a record holds what the plain loop reads, number for number."""
    expected = plain()
    assert [site.name for site in read.sites] == [site.name for site in expected.sites]
    assert read.steps.tolist() == expected.steps.tolist()
    assert read.metrics == expected.metrics
    np.testing.assert_allclose(read.values, expected.values, rtol=1e-6)


def test_accelerate_reads_as_the_plain_loop() -> None:
    same(by_accelerate())


@pytest.mark.parametrize("host", [by_transformers, by_lightning])
def test_a_callback_reads_as_the_plain_loop(
    host: Callable[[Path, list[Report]], Record], tmp_path: Path
) -> None:
    reports: list[Report] = []
    same(host(tmp_path, reports))
    assert len(reports) == 1
    assert len(reports[0].record.steps) == STEPS


def test_a_nan_that_the_trainer_hides_is_read_raw(tmp_path: Path) -> None:
    from steadygrad.integrations.hf import SteadygradCallback

    reports: list[Report] = []
    callback = SteadygradCallback(show=reports.append)
    trainer = trainer_of_transformers(callback, tmp_path, broken=4)
    trainer.train()

    losses = callback.watch.record.series("loss", "step")[:, 0]
    assert np.isinf(losses[4])
    logged = [one["loss"] for one in trainer.state.log_history if "loss" in one]
    assert np.isfinite(logged).all()
    codes = [one.code for one in reports[0].findings]
    assert codes[0] == "G001"
    assert "G503" in codes


def test_an_exception_in_lightning_ends_the_watch(capsys: pytest.CaptureFixture[str]) -> None:
    from steadygrad.integrations.lightning import SteadygradCallback

    class Breaks(SteadygradCallback):
        def on_train_batch_start(self, _trainer: Any, _module: Any, _batch: Any, n: int) -> None:
            if n == 5:
                raise RuntimeError("the disk is full")

    callback = Breaks()
    with pytest.raises(RuntimeError, match="the disk is full"):
        trainer_of_lightning(callback).fit(Lit.module(), batches())

    assert callback.watch.is_closed
    assert callback.watch.ended == "RuntimeError: the disk is full"
    shown = capsys.readouterr().err
    assert "5 steps" in shown


def test_a_fault_of_ours_does_not_end_a_training(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: sg.Watch) -> Report:
        raise ValueError("an axis")

    monkeypatch.setattr(sg.Watch, "report", broken)
    hosted = Hosted(show=pytest.fail)
    hosted.begin(nn.Linear(2, 2), [])
    hosted.end()
    assert capsys.readouterr().err == (
        "steadygrad: no report, by a fault of ours: ValueError: an axis\n"
    )


DIES = """
import torch
from steadygrad.integrations.hosted import Hosted
from steadygrad.sinks.wandb import Wandb

model = torch.nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
Hosted(to=Wandb(mode="offline")).begin(model, [optimizer])
for step in range(10):
    optimizer.zero_grad()
    model(torch.randn(8, 4)).square().mean().backward()
    optimizer.step()
    if step == 4:
        raise RuntimeError("the disk is full")
"""


def test_a_training_that_nobody_tells_the_end_of_is_reported_at_exit(tmp_path: Path) -> None:
    """The Trainer of transformers tells its callbacks of no exception; nor is W&B shut down yet."""
    pytest.importorskip("wandb", reason="pip install 'steadygrad[wandb]'")
    done = subprocess.run(
        [sys.executable, "-c", DIES], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    traceback, _, report = done.stderr.partition("RuntimeError: the disk is full\n")
    assert "Traceback" in traceback
    assert "5 steps" in report
    assert "the disk is full" in report
    (log,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    steps = [one.history.step.num for one in records(log) if one.HasField("history")]
    assert steps == [0, 1, 2, 3]


TWO_RANKS = """
import torch
import pytorch_lightning as pl
from torch import nn
from steadygrad.integrations.lightning import SteadygradCallback

class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 2)

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

if __name__ == "__main__":
    x = torch.randn(64, 4)
    data = torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long())
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", devices=2, strategy="ddp", **quiet,
        callbacks=[SteadygradCallback(run="runs/a")],
    )
    trainer.fit(Net(), torch.utils.data.DataLoader(data, 8))
"""


@pytest.mark.long
def test_of_the_ranks_of_lightning_one_reports_and_writes(tmp_path: Path) -> None:
    pytest.importorskip("pytorch_lightning", reason="pip install 'steadygrad[lightning]'")
    (tmp_path / "train.py").write_text(TWO_RANKS)
    done = subprocess.run(
        [sys.executable, "train.py"],
        cwd=tmp_path,
        env={**os.environ, "MASTER_ADDR": "127.0.0.1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("checks clear") == 1
    assert [one.name for one in (tmp_path / "runs").iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("variables", "first"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "2", "LOCAL_RANK": "0"}, False),
        ({"LOCAL_RANK": "1"}, False),
    ],
)
def test_what_launched_a_rank_tells_which_is_the_first(
    variables: dict[str, str], first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_first_rank() is first


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [
        ("integrations.hf", "transformers", "hf"),
        ("integrations.lightning", "pytorch_lightning", "lightning"),
        ("sinks.wandb", "wandb", "wandb"),
        ("sinks.mlflow", "mlflow", "mlflow"),
        ("sinks.trackio", "trackio", "trackio"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    module: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"steadygrad.{module}", raising=False)
    with pytest.raises(ImportError, match=rf"got none: pip install 'steadygrad\[{extra}\]'$"):
        __import__(f"steadygrad.{module}")


def test_a_trainer_of_trl(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="trl is not installed: pip install trl")
    import transformers as hf
    from datasets import Dataset
    from datasets.table import InMemoryTable
    from tokenizers import Tokenizer, models

    from steadygrad.integrations.hf import SteadygradCallback

    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, "<pad>"))
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>"
    )
    shape = {"n_layer": 1, "n_embd": 16, "n_head": 2, "vocab_size": 50, "n_positions": 8}
    torch.manual_seed(0)
    rows = torch.randint(2, 50, (16, 8)).tolist()
    callback = SteadygradCallback(show=lambda report: None)
    trainer = trl.SFTTrainer(
        hf.GPT2LMHeadModel(hf.GPT2Config(**shape, bos_token_id=1, eos_token_id=1)),
        trl.SFTConfig(
            str(tmp_path),
            max_steps=4,
            per_device_train_batch_size=2,
            report_to=[],
            use_cpu=True,
            bf16=False,
            save_strategy="no",
            logging_steps=1,
            max_grad_norm=0.5,
            disable_tqdm=True,
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        train_dataset=Dataset(InMemoryTable.from_pydict({"input_ids": rows}), fingerprint="rows"),
        processing_class=tokenizer,
        callbacks=[callback],
    )
    trainer.train()
    record = callback.watch.record
    logged = [one["grad_norm"] for one in trainer.state.log_history if "grad_norm" in one]
    np.testing.assert_allclose(record.series("norm", "step")[:, 0], logged, rtol=1e-3)
    assert "transformer.h.0.attn.c_attn.weight" in {site.name for site in record.sites}
