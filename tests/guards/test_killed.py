"""A run that is killed at any moment goes on from its checkpoint as if nothing had happened."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import torch

SCRIPT = """
import math, os, sys
import torch
import steadygrad as sg

path, steps = sys.argv[1], 60
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
optimizer = torch.optim.AdamW(model.parameters(), 0.01, fused=True)
policies = sg.clip_quantile(0.5, warmup=3), sg.skip_outlier(window=16), sg.lr_backoff(recover=20)
handle = sg.guard(optimizer, sg.skip_nonfinite(), *policies, strict=True)
whole = {"model": model, "optimizer": optimizer, "guard": handle}
first = 0
if os.path.exists(path):
    states = torch.load(path, weights_only=True)
    first = states.pop("step")
    for name, state in states.items():
        whole[name].load_state_dict(state)
for step in range(first, steps):
    x = torch.randn(32, 8, generator=torch.Generator().manual_seed(step))
    times = math.nan if step % 13 == 5 else 200.0 if step % 17 == 9 else 1.0
    optimizer.zero_grad()
    ((model(x) - x[:, :1]).square().mean() * times).backward()
    optimizer.step()
    states = {name: one.state_dict() for name, one in whole.items()}
    torch.save({**states, "step": step + 1}, path + ".new")
    os.replace(path + ".new", path)
    print(step, flush=True)
"""


def test_a_killed_run_goes_on_bit_by_bit(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.pt", tmp_path / "cut.pt"
    command = [sys.executable, "-c", SCRIPT]
    subprocess.run([*command, str(whole)], check=True, capture_output=True)
    with subprocess.Popen([*command, str(cut)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) == 25:
                process.send_signal(signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL
    reached = torch.load(cut, weights_only=True)["step"]
    assert 25 < reached < 60, "it was killed on its way"
    subprocess.run([*command, str(cut)], check=True, capture_output=True)
    one, other = (torch.load(path, weights_only=True) for path in (whole, cut))
    assert all(torch.equal(one["model"][name], other["model"][name]) for name in one["model"])
    assert one["guard"] == other["guard"]
