"""Real hosts and loops of every kind, watched: what is read is what was trained."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import steadygrad as sg
from steadygrad.core.stored import read, record_of
from tests.lightning import lightning_trainer


def test_a_trainer_of_transformers(tmp_path: Path) -> None:
    import transformers as hf

    torch.manual_seed(0)
    config = hf.GPT2Config(
        n_layer=2,
        n_embd=16,
        n_head=2,
        vocab_size=50,
        n_positions=16,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = hf.GPT2LMHeadModel(config)
    rows = [{"input_ids": t, "labels": t} for t in torch.randint(50, (40, 8))]
    arguments = hf.TrainingArguments(
        str(tmp_path),
        max_steps=6,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_grad_norm=0.5,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=1,
    )

    with sg.watch() as watch:
        trainer = hf.Trainer(model=model, args=arguments, train_dataset=rows)
        trainer.train()

    record = watch.record
    logged = [one for one in trainer.state.log_history if "grad_norm" in one]
    np.testing.assert_allclose(
        record.series("norm", "step")[:, 0], [one["grad_norm"] for one in logged], rtol=1e-3
    )
    np.testing.assert_allclose(record.series("norm_after", "step")[:, 0], 0.5, rtol=1e-3)
    np.testing.assert_allclose(
        record.series("loss", "step")[:, 0], [one["loss"] for one in logged], rtol=1e-2
    )
    assert record.series("backwards", "step")[:, 0].tolist() == [2] * 6
    assert "transformer.h.0.attn.c_attn.weight" in {site.name for site in record.sites}
    assert not [one for one in watch.report().findings if one.severity > 0]


def test_a_nan_that_a_trainer_hides(tmp_path: Path) -> None:
    import transformers as hf

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            y = self.layer(x).squeeze(-1)
            return {"loss": (y - (x[:, 0] - 2.0).sqrt()).square().mean(), "y": y}

    torch.manual_seed(0)
    rows = [{"x": torch.full((4,), 3.0) if n != 9 else torch.ones(4)} for n in range(16)]
    arguments = hf.TrainingArguments(
        str(tmp_path),
        max_steps=6,
        per_device_train_batch_size=2,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=1,
        max_grad_norm=0.0,
    )

    model = Model()  # named, as a compiled function anywhere silences the tape of one that is not
    with sg.watch(model) as watch, pytest.warns(RuntimeWarning, match="the loss is nan"):
        hf.Trainer(model=model, args=arguments, train_dataset=rows).train()

    found = watch.report().findings
    assert found[0].code == "G002"
    assert found[0].evidence["op"] == "sqrt"
    assert "G503" in [one.code for one in found]


def test_a_trainer_of_lightning() -> None:
    import pytorch_lightning as pl

    class Lit(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))

        def training_step(self, batch: list[Tensor], _: int) -> Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), 1e-2)

    torch.manual_seed(0)
    x = torch.randn(64, 8)
    loader = DataLoader(TensorDataset(x, x[:, :3].argmax(1)), 16)
    trainer = lightning_trainer(
        max_epochs=2,
        gradient_clip_val=0.1,
    )

    with sg.watch() as watch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's own, about workers and loggers
        trainer.fit(Lit(), loader)

    record = watch.record
    assert len(record.steps) == 8
    assert (record.series("norm", "step")[:, 0] > 0.1).all()
    np.testing.assert_allclose(record.series("norm_after", "step")[:, 0], 0.1, rtol=1e-3)
    assert "net.0.weight" in {site.name for site in record.sites}


@pytest.mark.parametrize("told", ["compiled", "bare", "nothing"])
def test_a_compiled_model_is_compiled_once(told: bool) -> None:
    import torch._dynamo

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    watch = sg.watch() if told == "nothing" else None
    model: Any = torch.compile(net, backend="aot_eager", fullgraph=True)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    watch = watch or sg.watch(model if told == "compiled" else net, optimizer)

    with watch:
        for _ in range(30):
            x = torch.randn(16, 8)
            optimizer.zero_grad()
            F.cross_entropy(model(x), x[:, :3].argmax(1)).backward()
            optimizer.step()

    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]
    record = watch.record
    assert len(record.steps) == 30
    assert "0.weight" in {site.name for site in record.sites}
    assert record.was_read("update")
    assert "compiled" in record.facts["blind"]["rms"]


def test_two_optimizers_share_their_rounds() -> None:
    torch.manual_seed(0)
    maker, judge = nn.Linear(4, 2), nn.Linear(2, 1)
    make, judging = torch.optim.Adam(maker.parameters()), torch.optim.SGD(judge.parameters(), 0.1)

    with sg.watch() as watch:
        for _ in range(5):
            fake = maker(torch.randn(8, 4))
            judging.zero_grad()
            (judge(fake.detach()).mean() - judge(torch.randn(8, 2)).mean()).backward()
            judging.step()
            make.zero_grad()
            (-judge(fake).mean()).backward()
            make.step()

    record = watch.record
    assert len(record.steps) == 5
    assert [site.kind for site in record.sites_of("step")] == ["SGD", "Adam"]
    assert not np.isnan(record.series("loss", "step")).any()
    assert {site.name for site in record.sites_of("weight")} == {
        "judge.weight",
        "judge.bias",
        "maker.weight",
        "maker.bias",
    }
    assert record.facts["stale"]["stale"] == 0


def test_a_step_inside_of_the_backward_pass() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizers = {p: torch.optim.SGD([p], 0.01) for p in net.parameters()}
    for parameter in net.parameters():
        parameter.register_post_accumulate_grad_hook(
            lambda p: (optimizers[p].step(), optimizers[p].zero_grad())[0]
        )

    with sg.watch(net) as watch:
        for _ in range(5):
            x = torch.randn(16, 8)
            F.cross_entropy(net(x), x[:, :3].argmax(1)).backward()

    record = watch.record
    assert len(record.steps) == 5
    assert not np.isnan(record.series("grad", "weight")).any()


def test_a_guard_and_a_watch_read_once() -> None:
    torch.manual_seed(0)
    net = nn.Linear(8, 3)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    guard = sg.guard(optimizer, sg.skip_nonfinite(), sg.clip_norm(0.05))

    def train() -> None:
        for number in range(6):
            x = torch.randn(16, 8)
            x[0, 0] = float("nan") if number == 4 else 0.0
            optimizer.zero_grad()
            F.cross_entropy(net(x), x[:, 1:4].argmax(1)).backward()
            optimizer.step()

    watch = sg.watch(net, optimizer)
    with pytest.warns(RuntimeWarning, match="G001"):
        train()
    watch.close()

    record = watch.record
    norms = record.series("norm", "step")[:, 0]
    np.testing.assert_allclose(norms[[0, 1, 2, 3, 5]], guard.history.norms, rtol=1e-5)
    assert record.series("skipped", "step")[:, 0].tolist() == [0, 0, 0, 0, 1, 0]
    assert record.series("max_norm", "step")[0, 0] == pytest.approx(0.05)
    assert [one.code for one in watch.report().findings if one.severity > 0] == ["G001"]


SHARDED = """
import sys
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
if sys.argv[1] == "ddp":
    model = nn.parallel.DistributedDataParallel(net)
else:
    fully_shard(net[0])
    model = fully_shard(net)
optimizer = torch.optim.Adam(model.parameters(), 1e-2)
torch.manual_seed(rank)
for _ in range(30):
    x = torch.randn(32, 16)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), x[:, :4].argmax(1)).backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    if rank == 0:
        print(norm.item())
    optimizer.step()
dist.destroy_process_group()
"""


OURS = """
import sys
from steadygrad.cli import main

sys.argv = ["steadygrad", "run", "--run", "run", "train.py", *sys.argv[1:]]
main()
"""


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
TORCHRUN += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
DRIFT = """    optimizer.step()
    if rank == 1:
        with torch.no_grad():
            net[0].weight.mul_(1.01)
"""


def test_norms_are_exact_over_ranks(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SHARDED)
    (tmp_path / "ours.py").write_text(OURS)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    done = subprocess.run(
        [*TORCHRUN, str(tmp_path / "ours.py"), "fsdp"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
    )

    assert done.returncode == 0, done.stderr
    printed = [float(line) for line in done.stdout.split()]
    record = record_of(read(tmp_path / "run"))
    norms, after = record.series("norm", "step")[:, 0], record.series("norm_after", "step")[:, 0]
    first = 1  # the layout is known from the first step on
    np.testing.assert_allclose(norms[first:], printed[first:], rtol=1e-3)
    np.testing.assert_allclose(after, np.minimum(printed, 0.5), rtol=1e-3)
    assert list(tmp_path.glob("run*")) == [tmp_path / "run"]
    assert not record.facts["ranks"]["diverged"]


def test_ranks_that_drift_apart_are_seen(tmp_path: Path) -> None:
    drifts = SHARDED.replace("    optimizer.step()\n", DRIFT)
    (tmp_path / "train.py").write_text(drifts)
    (tmp_path / "ours.py").write_text(OURS)

    done = subprocess.run(
        [*TORCHRUN, str(tmp_path / "ours.py"), "ddp"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=180,
    )

    assert done.returncode == 0, done.stderr
    assert "G505 diverged-ranks" in done.stderr
    assert "norm of the weights differs between the 2 ranks since step 10" in done.stderr
