"""The contract that every sink keeps, whoever wrote it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from steadygrad._guard import guard
from steadygrad._watch import Plan, Watch
from steadygrad.core.finding import Severity
from steadygrad.core.record import Record
from steadygrad.core.steps import METRICS
from steadygrad.guards.policies.nonfinite import skip_nonfinite
from steadygrad.sinks.sink import Sink, heading

STEPS, BROKEN = 12, 7
SHOWN = (0, 1, 2, 3, 5, BROKEN, 10)  # those that are sampled, and the first that is broken


@dataclass(frozen=True, slots=True)
class Shown:
    """What a sink's own package reads back: numbers by name by step, texts of findings by title."""

    rows: Mapping[int, Mapping[str, float]]
    findings: Mapping[str, str]


def check_sink(sink: Sink, read_back: Callable[[], Shown]) -> None:
    """Assert that a sink keeps the contract; raise AssertionError with the broken clause.

    A training of twelve steps, one of them on a NaN, is watched and shown. What is read back is
    what the watch has read, in the sampled steps and the broken one, infinities among it; each
    finding above a note is there, in its own words; no random number of Python's was drawn.
    """
    said: list[str] = []
    before = random.getstate()
    watch = trained(sink, said.append)
    assert random.getstate() == before, "it drew from Python's random numbers, which are the user's"
    ours = [one for one in said if type(sink).__name__ in one]
    assert not ours, f"it failed: {ours}"
    shown = read_back()
    assert tuple(sorted(shown.rows)) == SHOWN, (
        f"steps {sorted(shown.rows)} instead of {SHOWN}; it said {said}"
    )
    for step in SHOWN:
        _check_numbers(shown.rows[step], _numbers(watch.record, step), step)
    loud = [one for one in watch.report().findings if one.severity > Severity.note]
    assert {heading(one) for one in loud} == set(shown.findings), f"findings {shown.findings}"
    for one in loud:
        assert one.says in shown.findings[heading(one)], f"{heading(one)} says something else"


def trained(sink: Sink, say: Callable[[str], None]) -> Watch:
    """Train a small network that meets one NaN, and show it in a sink."""
    draw = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    guard(optimizer, skip_nonfinite())
    with Watch((model,), (optimizer,), Plan(name="contract", say=say, to=(sink,))) as watch:
        for step in range(STEPS):
            x = torch.randn(16, 8, generator=draw)
            target = x[:, :3].argmax(1)
            x[0, 0] = float("nan") if step == BROKEN else 0.0
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), target).backward()
            optimizer.step()
    return watch


def _numbers(record: Record, step: int) -> dict[str, float]:
    """Name what was read in a step as `export` does; the network has one optimizer."""
    found = {}
    row = record.values[record.steps.tolist().index(step)]
    for site, values in zip(record.sites, row, strict=True):
        for metric, value in zip(record.metrics, values.tolist(), strict=True):
            if METRICS[metric] == site.role and not np.isnan(value):
                found[metric if site.role == "step" else f"{metric}/{site.name}"] = value
    return found


def _check_numbers(shown: Mapping[str, float], read: Mapping[str, float], step: int) -> None:
    assert set(shown) == set(read), f"step {step} lacks or adds {set(shown) ^ set(read)}"
    names = sorted(read)
    there, here = ([side[name] for name in names] for side in (shown, read))
    assert np.allclose(there, here, rtol=1e-6, atol=0), f"step {step}: {there} instead of {here}"
