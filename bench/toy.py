"""What bad batches do to a small language model under each rule of clipping, and to batch norm."""

from __future__ import annotations

import inspect
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_, get_total_norm
from torch.optim import SGD, AdamW, Optimizer

import steadygrad as sg
from bench.table import Row, markdown, publish
from steadygrad.testing.data import digits

SEEDS = (0, 1, 2)
STEPS, BATCH, CONTEXT, WIDTH, HEADS, LAYERS = 220, 8, 64, 64, 4, 3
SPIKES, BROKEN = (40, 70, 100, 130, 160, 190), 115
MODULES = ("argparse", "ast", "datetime", "decimal", "difflib", "doctest", "email.message")
MODULES += ("inspect", "logging", "pathlib", "statistics", "subprocess", "tarfile", "typing")
Rule = Callable[[], object]  # what is called between backward and step


def run(seeds: Sequence[int] = SEEDS) -> None:
    """Train under all rules; write toy.md."""
    torch.set_num_threads(1)
    parts = [*_language(seeds), *_skipped_outside(seeds), *_batch_norm(seeds)]
    publish("toy", "Bad batches: what each rule leaves of a run", parts)


# --- Rules ----------------------------------------------------------------------------------------


def unguarded(_: list[Tensor]) -> Rule:
    """Do nothing."""
    return lambda: None


def by_norm(parameters: list[Tensor]) -> Rule:
    """Clip at 1, as most runs do."""
    return lambda: clip_grad_norm_(parameters, 1.0)


@dataclass
class ZClip:
    """The rule of Kumar 2025 with its defaults, as its authors' code has it."""

    parameters: list[Tensor]
    first: list[float] = field(default_factory=list)
    mean: float = math.nan
    variance: float = math.nan
    begun: bool = False

    def __call__(self) -> None:
        """Clip what stands out from the moving average, and at 1; without any look at NaN."""
        norm = _norm(self.parameters)
        if not self.begun:
            self.first.append(norm)
            if len(self.first) == 25:
                self.mean, self.variance = float(np.mean(self.first)), float(np.var(self.first))
                self.begun = True
            clip_grad_norm_(self.parameters, 1.0)
            return
        std = self.variance**0.5
        z = (norm - self.mean) / (std + 1e-6)
        effective = self.mean + 2.5 * std / (z / 2.5) if z > 2.5 else norm
        limit = min(effective, 1.0)
        if norm > limit:
            _multiply(self.parameters, limit / (norm + 1e-6))
        self.mean = 0.97 * self.mean + 0.03 * effective
        self.variance = 0.97 * self.variance + 0.03 * (effective - self.mean) ** 2


@dataclass
class AutoClip:
    """The rule of Seetharaman 2020 with its percentile of 10, as its authors' code has it."""

    parameters: list[Tensor]
    norms: list[float] = field(default_factory=list)

    def __call__(self) -> None:
        """Clip at the percentile of all norms so far; that of a list with a NaN is NaN."""
        self.norms.append(_norm(self.parameters))
        clip_grad_norm_(self.parameters, float(np.percentile(self.norms, 10)))


def _norm(parameters: Sequence[Tensor]) -> float:
    return float(get_total_norm([one.grad for one in parameters if one.grad is not None]))


def _multiply(parameters: Sequence[Tensor], factor: float) -> None:
    for one in parameters:
        if one.grad is not None:
            one.grad.mul_(factor)


RULES: dict[str, Callable[[list[Tensor]], Rule]] = {
    "unguarded": unguarded,
    "clip_grad_norm_(1.0)": by_norm,
    "ZClip as published": ZClip,
    "AutoClip as published": AutoClip,
}
GUARD = "sg.guard"
OPTIMIZERS: dict[str, Callable[[list[Tensor]], Optimizer]] = {
    "AdamW 3e-3": lambda parameters: AdamW(parameters, lr=3e-3),
    "SGD 0.3, momentum 0.9": lambda parameters: SGD(parameters, lr=0.3, momentum=0.9),
}


# --- A language model -----------------------------------------------------------------------------


class Block(nn.Module):
    """Attention to what came before, then a feed-forward part, each added to what goes by."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.attention, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.feed = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, h: Tensor) -> Tensor:
        """Map [batch, context, width] to the same."""
        parts = (
            self.attention(self.norms[0](h)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        )
        seen = functional.scaled_dot_product_attention(*parts, is_causal=True)
        h = h + self.out(seen.transpose(1, 2).flatten(2))
        after: Tensor = h + self.feed(self.norms[1](h))
        return after


class Toy(nn.Module):
    """A GPT over the 128 characters of ASCII."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(128, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)), nn.LayerNorm(WIDTH))
        self.head = nn.Linear(WIDTH, 128)
        for one in (self.tokens, self.places):
            nn.init.normal_(one.weight, std=0.02)

    def forward(self, text: Tensor) -> Tensor:
        """Return the loss of predicting each character of [batch, context + 1] but the first."""
        h = self.tokens(text[:, :-1]) + self.places(torch.arange(text.shape[1] - 1))
        scores: Tensor = self.head(self.blocks(h))
        return functional.cross_entropy(scores.flatten(0, 1), text[:, 1:].flatten())


def library() -> tuple[Tensor, Tensor]:
    """Return sources of Python's own library as characters, nine tenths to train on."""
    source = "\n".join(inspect.getsource(import_module(name)) for name in MODULES)
    text = torch.tensor(list(source.encode("ascii", "ignore")))
    many = len(text) * 9 // 10
    return text[:many], text[many:]


def _batch(text: Tensor, generator: torch.Generator, count: int = BATCH) -> Tensor:
    starts = torch.randint(len(text) - CONTEXT - 1, (count, 1), generator=generator)
    return text[starts + torch.arange(CONTEXT + 1)]


@dataclass(frozen=True)
class Setting:
    """Steps whose loss is multiplied by 1000, and by NaN."""

    spikes: tuple[int, ...] = ()
    broken: tuple[int, ...] = ()

    def times(self, step: int) -> float:
        """Return what the loss of a step is multiplied by."""
        return math.nan if step in self.broken else 1000.0 if step in self.spikes else 1.0


SETTINGS = {
    "clean": Setting(),
    "six batches x 1000": Setting(SPIKES),
    "and one NaN batch": Setting(SPIKES, (BROKEN,)),
}


@dataclass(frozen=True)
class Ended:
    """How a run ended: the loss on text not trained on, NaN where the run broke, and the skips."""

    loss: float
    skipped: int = 0


def trained(
    make: Callable[[list[Tensor]], Optimizer],
    arm: str,
    setting: Setting,
    seed: int,
    *,
    scaler: bool = False,
) -> Ended:
    """Train under one rule; `scaler` skips steps as GradScaler does: after the rule has looked."""
    torch.manual_seed(seed)
    text, held_out = library()
    model, generator = Toy(), torch.Generator().manual_seed(seed)
    parameters: list[Tensor] = list(model.parameters())
    optimizer = make(parameters)
    rule = RULES.get(arm, unguarded)(parameters)
    policies = (sg.skip_nonfinite(), sg.skip_outlier(), sg.clip_norm(1.0))
    handle = sg.guard(optimizer, *policies, strict=True) if arm == GUARD else None
    for step in range(STEPS):
        times = setting.times(step)
        loss = model(_batch(text, generator))
        if loss.isnan():
            return Ended(math.nan)
        optimizer.zero_grad()
        (loss * times).backward()
        skips = scaler and not math.isfinite(_norm(parameters))
        rule()
        if not skips:
            optimizer.step()
    with torch.no_grad():
        end = float(model(_batch(held_out, torch.Generator().manual_seed(0), 128)))
    return Ended(end, handle.history.skipped if handle is not None else 0)


def _language(seeds: Sequence[int]) -> list[str]:
    text = (
        f"A GPT of {LAYERS} layers, width {WIDTH}, on the characters of Python's own library "
        f"({', '.join(MODULES)}): {STEPS} steps of {BATCH} x {CONTEXT} characters. The loss of "
        f"the batches {', '.join(map(str, SPIKES))} is multiplied by 1000, that of batch {BROKEN} "
        f"by NaN. Loss on text not trained on: mean (smallest to largest) over {len(seeds)} seeds; "
        "nan: in all seeds the run is lost. The guard is `sg.guard(optimizer, skip_nonfinite(), "
        "skip_outlier(), clip_norm(1.0))`, the published rules are written out in `bench/toy.py`."
    )
    rows: list[Row] = []
    for name, make in OPTIMIZERS.items():
        for label, setting in SETTINGS.items():
            ends = {
                arm: [trained(make, arm, setting, seed) for seed in seeds]
                for arm in (*RULES, GUARD)
            }
            skipped = ", ".join(str(one.skipped) for one in ends[GUARD])
            rows.append((name, label, *(_said(one) for one in ends.values()), skipped))
    header = ("optimizer", "batches", *RULES, GUARD, "steps it skipped, by seed")
    return [text, markdown(header, rows)]


def _skipped_outside(seeds: Sequence[int]) -> list[str]:
    text = (
        "The NaN batch alone, its step skipped from outside as GradScaler does: gradients are "
        "tested, then the rule sees them, then the step is skipped. What the rule has remembered "
        "decides about the rest of the run."
    )
    setting = Setting(broken=(BROKEN,))
    arms = [arm for arm in RULES if arm != "unguarded"]
    rows = [
        (name, *(_said([trained(make, a, setting, s, scaler=True) for s in seeds]) for a in arms))
        for name, make in OPTIMIZERS.items()
    ]
    return [text, markdown(("optimizer", *arms), rows)]


def _said(ends: Sequence[Ended]) -> str:
    whole = [one.loss for one in ends if not math.isnan(one.loss)]
    if not whole:
        return "nan"
    said = f"{statistics.mean(whole):.3f} ({min(whole):.3f} to {max(whole):.3f})"
    lost = len(ends) - len(whole)
    return said if not lost else f"{said}, nan in {lost} of {len(ends)}"


# --- Batch norm -----------------------------------------------------------------------------------


def convolutional() -> nn.Sequential:
    """Build a small convolutional network with batch norm, for 8 x 8 digits."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 16, 10),
    )


def recognized(arm: str, seed: int, *, steps: int = 120, broken: int = 60) -> tuple[float, bool]:
    """Return accuracy on digits not trained on, and whether all running statistics are finite."""
    torch.manual_seed(seed)
    pixels, labels = digits(1797)
    x = pixels.reshape(-1, 1, 8, 8)
    model = convolutional()
    optimizer = AdamW(model.parameters(), lr=3e-3)
    if arm != "unguarded":
        sg.guard(optimizer, model=model if arm == "guard, model=model" else None, strict=True)
    for step in range(steps):
        chosen = torch.randint(1500, (64,))
        batch = x[chosen].clone()
        if step == broken:
            batch[0, 0, 0, 0] = math.inf
        optimizer.zero_grad()
        functional.cross_entropy(model(batch), labels[chosen]).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        right = model(x[1500:]).argmax(1) == labels[1500:]
    finite = all(bool(one.isfinite().all()) for one in model.buffers())
    return float(right.float().mean()), finite


def _batch_norm(seeds: Sequence[int]) -> list[str]:
    text = (
        "Batch norm: two convolutions with batch norm on 8 x 8 digits, 120 steps of AdamW 3e-3, "
        "one infinite pixel in batch 60. Accuracy in eval mode on 297 digits not trained on (a "
        f"tenth is chance), {len(seeds)} seeds. Skipping the step saves the parameters; the "
        "running statistics are lost in the forward pass, and saved only by `model=model`."
    )
    rows = []
    for arm in ("unguarded", "guard", "guard, model=model"):
        ends = [recognized(arm, seed) for seed in seeds]
        finite = sum(whole for _, whole in ends)
        accuracy = ", ".join(f"{right:.3f}" for right, _ in ends)
        rows.append((arm, accuracy, f"{finite} of {len(ends)}"))
    header = ("rule", "accuracy, by seed", "running statistics finite")
    return [text, markdown(header, rows)]
