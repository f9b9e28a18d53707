"""Small drawings in a line of text, as SVG: they need no script."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from steadygrad.render.html.markup import Markup, tag
from steadygrad.render.html.numbers import Binned, Floats, binned, said, spans_decades

WIDTH, HEIGHT, EDGE = 480.0, 46.0, 4.0  # units of the drawing
POINTS = 160


def spark(series: Floats, label: str) -> Markup:
    """Draw a series [steps]; crosses stand where it is not finite, and the log is taken if wide."""
    starts = np.unique(
        np.linspace(0, len(series), min(len(series), POINTS), endpoint=False)
    ).astype(np.int64)
    drawn = binned(series, starts)
    wide = spans_decades(series)
    read = series[np.isfinite(series)]
    ends = (
        f"{said(float(read.min()))} to {said(float(read.max()))}" if len(read) else "never finite"
    )
    words = f"{label}: {ends}{', log axis' if wide else ''}"
    picture = tag(
        "svg",
        *_shapes(drawn, wide),
        viewBox=f"0 0 {WIDTH:.0f} {HEIGHT:.0f}",
        role="img",
        aria_label=words,
    )
    return tag("figure", picture, tag("figcaption", words), class_="spark")


def _shapes(drawn: Binned, wide: bool) -> list[Markup]:
    middle, low, high = (
        np.log10(one) if wide else one for one in (drawn.middle, drawn.low, drawn.high)
    )
    read = np.concatenate([low, high])
    read = read[np.isfinite(read)]
    least, most = (float(read.min()), float(read.max())) if len(read) else (0.0, 1.0)
    across = (
        np.linspace(EDGE, WIDTH - EDGE, len(middle)) if len(middle) > 1 else np.array([WIDTH / 2])
    )

    def height(values: Floats) -> Floats:
        share = (values - least) / (most - least) if most > least else np.full(len(values), 0.5)
        return HEIGHT - EDGE - share * (HEIGHT - 2 * EDGE)

    shapes = (
        [tag("path", d=_band(across, height(low), height(high)), class_="band")]
        if drawn.is_wide
        else []
    )
    shapes.append(tag("path", d=_line(across, height(middle)), class_="line"))
    crosses = "".join(_crosses(across[drawn.broken]))
    return [*shapes, tag("path", d=crosses, class_="cross")] if crosses else shapes


def _crosses(across: Floats) -> Iterator[str]:
    """Draw crosses along the top, none on another."""
    last = -math.inf
    for x in across.tolist():
        if x - last > 10:
            yield f"M{x - 3:.1f} {EDGE - 3:.1f}l6 6m0 -6l-6 6"
            last = x


def _line(across: Floats, heights: Floats) -> str:
    """Join the points that were read; a gap stays a gap."""
    words: list[str] = []
    pen = "M"
    for x, y in zip(across.tolist(), heights.tolist(), strict=True):
        if np.isfinite(y):
            words.append(f"{pen}{x:.1f} {y:.1f}")
        pen = "L" if np.isfinite(y) else "M"
    return "".join(words)


def _band(across: Floats, low: Floats, high: Floats) -> str:
    read = np.isfinite(low)
    there = [*zip(across[read].tolist(), high[read].tolist(), strict=True)]
    back = [*zip(across[read].tolist(), low[read].tolist(), strict=True)][::-1]
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in (*there, *back)) + "Z"
