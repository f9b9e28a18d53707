"""Draw the tutorials' figures: `python docs/tutorials/figures.py [FIGURE ...]`.

Each is an SVG whose ink follows the reader's light or dark, in English and in Chinese.
"""

from __future__ import annotations

import io
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

import steadygrad as sg
from steadygrad import numerics

HERE = Path(__file__).parent
CHINA = HERE.parent / "zh" / "tutorials"
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
Draw = Callable[[Axes], None]

INK, PALE = "#123456", "#345678"  # stand for what the style sheet below says
STYLE = """<style>
svg { --ink: #24292f; --pale: #b9bec6 }
@media (prefers-color-scheme: dark) { svg { --ink: #dfe3ea; --pale: #5a606b } }
</style>"""
COLORS = ["#d1495b", "#2b8fc4", "#3a9e5c", "#c98a1b", "#8a63c9", "#7f8791"]  # legible on both
SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "steadygrad",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.prop_cycle": f"cycler('color', {COLORS})",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.6,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": PALE,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": PALE,
    "grid.linewidth": 0.4,
    "legend.frameon": False,
}

CHINESE = {
    "step": "步数",
    "loss": "损失",
    "layer": "层（从输入到输出）",
    "gradient's norm, 1 at the output": "梯度范数（输出端为 1）",
    "lr = 0.03: straight down": "lr = 0.03：直接下降",
    "lr = 0.12: from side to side": "lr = 0.12：来回振荡",
    "lr = 0.126: away": "lr = 0.126：发散",
    "PyTorch's default": "PyTorch 默认初始化",
    "He's weights": "He 初始化",
    "He's weights, doubled": "He 初始化 × 2",
    "one layer divided by 100": "He 初始化，其中一层 ÷ 100",
    "as it is, also with lr x 10, or Adam": "原样（lr × 10 或 Adam 亦然）",
    "SELU": "SELU",
    "batch norm": "批归一化",
    "residuals": "残差",
    "residuals, layer norm": "残差 + 层归一化",
}


# --- From gradient descent to healthy gradients ---------------------------------------------------


def descent(axes: Axes) -> None:
    """Three descents on x^4, until one is too far away to draw."""
    says = {0.03: "straight down", 0.12: "from side to side", 0.126: "away"}
    for lr, how in says.items():
        points = numerics.descend(lambda x: x**4, 2.0, lr, tol=0.01, max_steps=12).points
        shown = [float(x) for x in points if abs(x) < 5]
        axes.plot(shown, "o-", markersize=4, label=f"lr = {lr:g}: {how}")
    axes.axhline(0, color=PALE, linewidth=0.8)
    axes.set(xlabel="step", ylabel="x", ylim=(-4, 4))
    axes.legend()


def depth(axes: Axes) -> None:
    """How the gradient's norm goes through 20 layers, as a check reads it."""
    images, _ = digits()
    faulty = he(plain(20))
    with torch.no_grad():
        linears(faulty)[9].weight.div_(100)
    models = {
        "He's weights": he(plain(20)),
        "PyTorch's default": plain(20),
        "He's weights, doubled": scaled(he(plain(20)), 2.0),
        "one layer divided by 100": faulty,
    }
    for name, model in models.items():
        axes.semilogy(range(1, 21), norms(model, images[:128]), ".-", label=name)
    profile_axes(axes, 20)


def remedies(axes: Axes) -> None:
    """The losses of 20 layers with one thing changed, as the page trains them."""
    models: dict[str, Callable[[], nn.Module]] = {
        "as it is, also with lr x 10, or Adam": lambda: plain(20),
        "He's weights": lambda: he(plain(20)),
        "batch norm": lambda: plain(20, norm=nn.BatchNorm1d),
        "residuals": lambda: Residual(20),
        "SELU": lambda: he(plain(20, nn.SELU), "linear"),
        "residuals, layer norm": lambda: Residual(20, nn.LayerNorm),
    }
    for (name, make), color in zip(models.items(), [COLORS[-1], *COLORS], strict=False):
        axes.plot(smooth(losses(make(), steps=50)), label=name, color=color)
    axes.set(xlabel="step", ylabel="loss", ylim=(0, 2.6))
    above(axes)


# --- My loss is NaN ---------------------------------------------------------------------------


def root(axes: Axes) -> None:
    """The slope of the square root, without and with an eps inside."""
    places = np.geomspace(1e-8, 1.0, 65)
    for name, eps in {"of √x": 0.0, "of √(x + 1e-6)": 1e-6, "of √(x + 1e-4)": 1e-4}.items():
        axes.loglog(places, 0.5 / np.sqrt(places + eps), label=name)
    axes.set(xlabel="x", ylabel="slope")
    axes.legend()


# --- Fifty layers without residuals ---------------------------------------------------------------


def fifty(axes: Axes) -> None:
    """How the gradient's norm goes through each of the page's networks."""
    level = plain(50)
    images, _ = digits()
    finding = sg.check(level, images[:128]).findings[0]
    scaled(level, float(finding.evidence["multiplier"]))
    models = {
        "as it comes": plain(50),
        "level weights": level,
        "orthogonal, tanh": orthogonal(plain(50, nn.Tanh)),
        "batch norm": plain(50, norm=nn.BatchNorm1d),
        "residuals": Residual(50),
        "residuals, layer norm": Residual(50, nn.LayerNorm),
    }
    for (name, model), color in zip(models.items(), [COLORS[-1], *COLORS], strict=False):
        depths = norms(model, images[:128])
        places = np.linspace(1, 50, len(depths))
        axes.semilogy(places, depths, label=name, color=color)
    profile_axes(axes, 50)


# --- Guarding a long run --------------------------------------------------------------------------


def guarded(axes: Axes) -> None:
    """The gradient's norm before and after the guard of the page."""
    page = (HERE / "long-run.md").read_text(encoding="utf-8")
    first, second = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[:2]
    namespace: dict[str, Any] = {}
    torch.set_default_dtype(torch.float32)
    exec(first, namespace)
    exec(second, namespace)
    torch.set_default_dtype(torch.float64)
    history = namespace["guard"].history
    steps = [one.step for one in history]
    axes.semilogy(steps, [one.norm for one in history], color=COLORS[0], label="before the guard")
    axes.semilogy(steps, [one.norm_after for one in history], color=COLORS[1], label="after it")
    for one in history:
        if one.skipped:
            axes.axvline(one.step, color=COLORS[3], linewidth=1.2, label="skipped")
    axes.set(xlabel="step", ylabel="gradient's norm")
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[:3], labels[:3])


# --- What they are made of ------------------------------------------------------------------------


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Images [1797, 64], scaled, and labels [1797]."""
    pixels, labels = (torch.tensor(one) for one in load_digits(return_X_y=True))
    return (pixels - pixels.mean()) / pixels.std(), labels


def plain(
    count: int,
    activation: type[nn.Module] = nn.ReLU,
    norm: Callable[[int], nn.Module] = nn.Identity,
) -> nn.Sequential:
    """The pages' plain network, so many layers deep."""
    torch.manual_seed(0)
    layers = [one for _ in range(count - 1) for one in (nn.Linear(64, 64), norm(64), activation())]
    return nn.Sequential(*layers, nn.Linear(64, 10))


class Residual(nn.Module):
    """The pages' residual network."""

    def __init__(self, count: int, norm: Callable[[int], nn.Module] = nn.Identity) -> None:
        super().__init__()
        torch.manual_seed(0)
        blocks = [nn.Sequential(norm(64), nn.Linear(64, 64), nn.ReLU()) for _ in range(count - 1)]
        self.blocks, self.head = nn.ModuleList(blocks), nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add each block's output to its input."""
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def linears(model: nn.Module) -> list[nn.Linear]:
    """The linear layers of a network, in order."""
    return [one for one in model.modules() if isinstance(one, nn.Linear)]


def he(model: nn.Module, nonlinearity: str = "relu") -> nn.Module:
    """Draw the weights with He's variance, or another."""
    for layer in linears(model):
        nn.init.kaiming_normal_(layer.weight, nonlinearity=nonlinearity)
        nn.init.zeros_(layer.bias)
    return model


def orthogonal(model: nn.Module) -> nn.Module:
    """Draw orthogonal weights."""
    for layer in linears(model):
        nn.init.orthogonal_(layer.weight)
        nn.init.zeros_(layer.bias)
    return model


def scaled(model: nn.Module, factor: float) -> nn.Module:
    """Multiply all weights."""
    with torch.no_grad():
        for layer in linears(model):
            layer.weight.mul_(factor)
    return model


def norms(model: nn.Module, inputs: torch.Tensor) -> list[float]:
    """The gradient's norm before each unit, one at the output, as `sg.check` reads it."""
    gains = sg.check(model, inputs).record.read("gain", "unit")  # decades, in forward order
    return [10.0**one for one in np.cumsum(gains[::-1])[::-1]]


def losses(model: nn.Module, *, steps: int, lr: float = 0.01) -> list[float]:
    """Train as the pages do."""
    images, labels = digits()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    seen = []
    for _ in range(steps):
        batch = torch.randint(len(images), (64,), generator=generator)
        loss = cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    return seen


def smooth(values: list[float], over: int = 5) -> list[float]:
    """Means of so many neighbours, fewer at the start."""
    return [
        math.fsum(part) / len(part)
        for part in (values[max(0, i - over + 1) : i + 1] for i in range(len(values)))
    ]


def profile_axes(axes: Axes, count: int) -> None:
    """Axes of a depth profile."""
    axes.axhline(1, color=PALE, linewidth=0.8)
    axes.set(xlabel="layer", ylabel="gradient's norm, 1 at the output", xlim=(0, count + 1))
    axes.set_xticks([1, *range(count // 5, count + 1, count // 5)])
    above(axes)


def above(axes: Axes) -> None:
    """Set the legend above the curves, where it hides none."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, fontsize=8.5)


# --- Drawing --------------------------------------------------------------------------------------

FIGURES: dict[str, Draw] = {
    "descent": descent,
    "depth": depth,
    "remedies": remedies,
    "root": root,
    "fifty": fifty,
    "guarded": guarded,
}
BOTH = ("descent", "depth", "remedies")  # in both languages


def draw(name: str) -> str:
    """Draw a figure and return it as SVG."""
    with rc_context(SETTINGS):
        figure = Figure(figsize=(6.6, 3.4), layout="constrained")
        axes = figure.subplots()
        axes.grid(axis="y")
        FIGURES[name](axes)
        page = io.StringIO()
        figure.savefig(page, format="svg", transparent=True, metadata=NO_METADATA)
    drawn = page.getvalue().replace(INK, "var(--ink)").replace(PALE, "var(--pale)")
    return re.sub(r"(<svg[^>]*>)", rf"\1\n{STYLE}", drawn, count=1)


def in_chinese(drawn: str) -> str:
    """Translate the words of a figure; it is laid out for the English ones, which are longer."""
    for english, chinese in CHINESE.items():
        drawn = drawn.replace(f">{english}<", f">{chinese}<")
    return drawn


def main(names: list[str]) -> None:
    """Write the named figures, or all."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    for name in names or FIGURES:
        drawn = draw(name)
        (HERE / f"{name}.svg").write_text(drawn, encoding="utf-8")
        if name in BOTH:
            (CHINA / f"{name}.svg").write_text(in_chinese(drawn), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
