"""Show `check` at work: a deep network that does not learn, explained, corrected, and trained."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from itertools import pairwise

import torch
from torch import Tensor, nn

from steadygrad._check import check
from steadygrad.core.finding import Finding
from steadygrad.core.report import Report
from steadygrad.render.text import text
from steadygrad.render.words import Glyphs, glyphs_for

DEPTH = 30
WIDTH = 128
STEPS = 300
BATCH = 64


def main() -> int:
    """Tell the story in the terminal; return the exit code."""
    torch.set_num_threads(1)  # for layers this small, threads cost more than they give
    try:
        images, labels = digits()
    except ImportError:
        sys.stderr.write(
            "steadygrad: expected scikit-learn, whose digits the demo learns, got none: "
            "pip install 'steadygrad[demo]'\n"
        )
        return 2
    say(f"1. A network of {DEPTH} layers, as PyTorch initializes it, on handwritten digits.")
    model = network()
    before = trained(deepcopy(model), images, labels)
    tell(f"It does not learn: {summary(before)}.")
    say("2. What a check says about it, before a single weight has moved:")
    report = checked(model, images, labels)
    show(report)
    cause = cure(report)
    if cause is None:
        tell("No finding names a multiplier, so there is nothing to correct.")
        return 1
    multiply(model, cause)
    say(f"3. The same network, its weights multiplied by {cause.evidence['multiplier']:.4g}:")
    show(checked(model, images, labels))
    after = trained(model, images, labels)
    say(f"4. It learns: {summary(after)}.")
    named = {"as it was": before, "corrected": after}
    sys.stdout.write(curves(named, columns(), glyphs_for(sys.stdout.encoding)))
    return 0


# --- The network and its training -----------------------------------------------------------------


def digits() -> tuple[Tensor, Tensor]:
    """Load 1797 images [1797, 64], standardized, and their labels [1797]."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    pixels = torch.tensor(images, dtype=torch.float32)
    return (pixels - pixels.mean()) / pixels.std(), torch.tensor(labels)


def network(seed: int = 0) -> nn.Module:
    """Build a plain ReLU network with PyTorch's default initialization."""
    torch.manual_seed(seed)
    widths = [64, *[WIDTH] * (DEPTH - 1), 10]
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def trained(model: nn.Module, images: Tensor, labels: Tensor, seed: int = 0) -> list[float]:
    """Train on random batches and return the loss of each step."""
    optimizer = sgd(model)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(STEPS):
        batch = torch.randint(len(images), (BATCH,), generator=generator)
        loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def sgd(model: nn.Module) -> torch.optim.SGD:
    """Return the optimizer of both trainings.

    The corrected network learns at rates up to 0.005; as it was, it learns at none up to 0.05.
    """
    return torch.optim.SGD(model.parameters(), lr=0.002, momentum=0.9)


def checked(model: nn.Module, images: Tensor, labels: Tensor) -> Report:
    """Check a network with its loss on one batch and its optimizer."""
    batch, wanted = images[:BATCH], labels[:BATCH]
    return check(
        model,
        loss=lambda m: nn.functional.cross_entropy(m(batch), wanted),
        optimizer=sgd(model),
        target=f"{DEPTH} layers on handwritten digits",
    )


def cure(report: Report) -> Finding | None:
    """Return the first finding that names a multiplier."""
    return next((one for one in report.findings if "multiplier" in one.evidence), None)


def multiply(model: nn.Module, cause: Finding) -> None:
    """Multiply the weights of the layers in a finding by its multiplier."""
    with torch.no_grad():
        for name in cause.where:
            model.get_parameter(f"{name}.weight").mul_(float(cause.evidence["multiplier"]))


# --- The terminal -----------------------------------------------------------------------------


def say(words: str) -> None:
    """Open a chapter of the story."""
    tell(f"\n{words}\n")


def tell(words: str) -> None:
    """Write one line of the story at once."""
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


def show(report: Report) -> None:
    """Write a report as the terminal can show it."""
    ascii_only = glyphs_for(sys.stdout.encoding).ascii
    sys.stdout.write(text(report, columns(), sys.stdout.isatty(), ascii_only))


def columns() -> int:
    """Return the width to draw in: the terminal's, 100 at most; 80 when there is none."""
    return min(shutil.get_terminal_size((80, 24)).columns, 100)


def summary(losses: Sequence[float]) -> str:
    """Say where a training began and where it ended."""
    last = sum(losses[-20:]) / len(losses[-20:])
    return f"loss {losses[0]:.2f} at the start, {last:.2f} after {len(losses)} steps"


def curves(
    named: Mapping[str, Sequence[float]], width: int, glyphs: Glyphs, *, rows: int = 12
) -> str:
    """Draw two curves of losses over the steps on one axis from 0, each with a sign of its own."""
    signs = dict(zip(named, ".o" if glyphs.ascii else "·●", strict=True))
    cells = width - 8
    thinned = {name: smoothed(losses, cells) for name, losses in named.items()}
    top = max(max(losses) for losses in thinned.values())
    grid = [[" "] * cells for _ in range(rows)]
    for name, losses in thinned.items():
        for column, loss in enumerate(losses):
            grid[rows - 1 - round(loss / top * (rows - 1))][column] = signs[name]
    side = "|" if glyphs.ascii else "│"
    labels = [f"{top:.1f}", *[""] * (rows - 2), "0"]
    framed = zip(labels, grid, strict=True)
    drawn = [f"{label:>5} {side}{''.join(row)}".rstrip() for label, row in framed]
    legend = "   ".join(f"{sign} {name}" for name, sign in signs.items())
    steps = max(len(losses) for losses in named.values())
    return "\n".join([*drawn, f"       loss over {steps} steps:  {legend}", ""])


def smoothed(losses: Sequence[float], cells: int) -> list[float]:
    """Return the mean loss of each of so many equal stretches of the steps."""
    edges = [round(number * len(losses) / cells) for number in range(cells + 1)]
    stretches = (losses[start : max(end, start + 1)] for start, end in pairwise(edges))
    return [sum(one) / len(one) for one in stretches]
