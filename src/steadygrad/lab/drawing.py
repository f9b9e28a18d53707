"""Draw a figure as SVG and PNG; matplotlib is imported here and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steadygrad.lab.experiment import Figure


@dataclass(frozen=True, slots=True)
class Panel:
    """A named table of numbers by (x, y); inf where a training diverged."""

    name: str
    values: Mapping[tuple[float, float], float]


@dataclass(frozen=True, slots=True)
class Map:
    """Panels whose numbers are colors, on common axes; `color` says what the numbers are.

    `signed` numbers have a color of no hue at 0.
    """

    title: str
    x: str
    y: str
    color: str
    panels: Sequence[Panel]
    signed: bool = False


def draw(figure: Figure, title: str, directory: Path) -> None:
    """Write figure.svg and figure.png. Raises ModuleNotFoundError with what to install."""
    with _canvas(directory / "figure", (6.4, 4.0)) as canvas:
        axes = canvas.subplots()
        for curve in figure.curves:
            style = "--" if curve.theory else "o-" if len(curve.x) <= 40 else "-"
            axes.plot(curve.x, curve.y, style, label=curve.name, markersize=3, linewidth=1.2)
        axes.set(xlabel=figure.x, ylabel=figure.y)
        axes.set_xscale("log" if "x" in figure.log else "linear")
        axes.set_yscale("log" if "y" in figure.log else "linear")
        axes.set_title(title, fontsize=8, wrap=True)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7)


def draw_map(shown: Map, directory: Path, name: str) -> None:
    """Write NAME.svg and NAME.png: a panel each, cells of equal size at the values of the axes.

    Grey is what diverged; white what was not tried. Raises ModuleNotFoundError with what to
    install.
    """
    across = min(3, len(shown.panels))
    down = math.ceil(len(shown.panels) / across)
    keys = [key for panel in shown.panels for key in panel.values]
    xs, ys = (sorted({key[axis] for key in keys}) for axis in (0, 1))
    tables = [_table(panel, xs, ys) for panel in shown.panels]
    look = _look(np.concatenate([table.ravel() for table in tables]), shown.signed)
    with _canvas(directory / name, (2.6 * across + 1.2, 1.8 * down + 0.8)) as canvas:
        grid = canvas.subplots(down, across, squeeze=False, sharex=True, sharey=True)
        for axes in grid.flat[len(tables) :]:
            axes.set_axis_off()
        for axes, panel, table in zip(grid.flat, shown.panels, tables, strict=False):
            diverged = np.where(np.isinf(table), 0.7, np.nan)
            axes.imshow(diverged, cmap="gray", vmin=0, vmax=1, **SQUARE)
            image = axes.imshow(np.where(np.isinf(table), np.nan, table), **look, **SQUARE)
            axes.set_title(panel.name, fontsize=7)
            axes.set_xticks(range(len(xs)), [f"{x:.2g}" for x in xs], rotation=60, fontsize=6)
            axes.set_yticks(range(len(ys)), [f"{y:g}" for y in ys], fontsize=6)
        canvas.supxlabel(shown.x, fontsize=8)
        canvas.supylabel(shown.y, fontsize=8)
        canvas.suptitle(f"{shown.title}; grey: diverged", fontsize=8)
        canvas.colorbar(image, ax=grid, label=shown.color, shrink=0.8)


SQUARE: Mapping[str, Any] = {"origin": "lower", "aspect": "auto"}


def _look(numbers: NDArray[np.float64], signed: bool) -> dict[str, Any]:
    """Return the colors of numbers and what they range over."""
    known = numbers[np.isfinite(numbers)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    if not signed:
        return {"cmap": "viridis_r", "vmin": low, "vmax": high}
    most = max(abs(low), abs(high))
    return {"cmap": "RdBu_r", "vmin": -most, "vmax": most}


def _table(panel: Panel, xs: Sequence[float], ys: Sequence[float]) -> NDArray[np.float64]:
    return np.array([[panel.values.get((x, y), math.nan) for x in xs] for y in ys])


@contextmanager
def _canvas(path: Path, size: tuple[float, float]) -> Iterator[Any]:  # matplotlib has no types
    """Give something to draw on, and write it as SVG and PNG, the same bytes each time."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure as Canvas
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"expected matplotlib to draw {path}.svg, it is not installed: "
            "pip install 'steadygrad[lab]'"
        ) from error
    with rc_context({"svg.hashsalt": "steadygrad", "font.size": 9}):
        canvas = Canvas(figsize=size, layout="constrained")
        yield canvas
        canvas.savefig(f"{path}.svg", metadata={"Date": None})
        canvas.savefig(f"{path}.png", dpi=120)
