"""Orthogonal weights, scaled until each layer puts out unit variance on the first batch."""

from __future__ import annotations

from steadygrad.remedies._measured import drawn_and_scaled
from steadygrad.remedies._parts import Part
from steadygrad.remedies.remedy import Change, Scene, remedy


@remedy("lsuv", "initialisation", cures=("G201", "G202", "G104", "G103"), size=3)
def lsuv(scene: Scene) -> Change:
    """Draw orthogonal weights, then divide each by the deviation of its output on the first batch.

    Biases are zero.

    **When it fails.** Only the signal is made level: behind sigmoids the gradient still vanishes.
    Layers whose output does not vary over the batch are left as they are drawn.

    **Reference.** Mishkin & Matas 2016, algorithm 1; in a single pass, see `_measured`.
    """
    return drawn_and_scaled(scene, _deviation)


def _deviation(part: Part) -> float:
    return 0.0 if part.output is None else float(part.output.detach().double().std(correction=0))
