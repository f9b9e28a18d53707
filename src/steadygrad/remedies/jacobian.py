"""Scale each layer until it hands the gradient of the first batch back as large as it got it."""

from __future__ import annotations

import torch
from torch import Tensor

from steadygrad.probe.gradients import gradients
from steadygrad.remedies._measured import drawn_and_scaled
from steadygrad.remedies._parts import Part, feeding
from steadygrad.remedies.remedy import Change, Scene, remedy


@remedy("jacobian-init", "initialisation", cures=("G102", "G101", "G201", "G202", "G302"), size=3)
def jacobian_init(scene: Scene) -> Change:
    """Draw orthogonal weights, then scale each so that its gain on the way back is 1.

    In one forward pass a random cotangent at the output of each layer is pulled back to the output
    of the layer before, through whatever stands between, and the weight is divided by what happens
    to its L2 norm. A layer that has no layer before it brings the second moment of its output to 1.
    Biases are zero.

    **When it fails.** The signal is not held: GELU and SiLU drift from their unstable fixed point
    (`critical-init`), and behind sigmoids all samples still come to look alike. A layer within a
    residual branch does not see the skip.

    **Reference.** He, Doshi & Gromov 2022 (arXiv 2206.13568), section 3: partial Jacobians; with
    one random vector for the norm of each.
    """
    return drawn_and_scaled(scene, _gain)


def _gain(part: Part) -> float:
    output, before = part.output, _layer_before(part)
    if output is None:
        return 0.0
    if before is None or not output.requires_grad:
        return float(output.detach().double().square().mean().sqrt())
    generator = torch.Generator(output.device).manual_seed(0)
    given = torch.randn(output.shape, generator=generator, device=output.device).to(output.dtype)
    (found,) = gradients([output], [before], [given])
    return 0.0 if found is None else float(found.double().norm() / given.double().norm())


def _layer_before(part: Part) -> Tensor | None:
    """The output of the nearest layer that feeds this one through other parts."""
    outputs = (one.output for one in feeding(part) if one.kind == "layer")
    return next((one for one in outputs if one is not None), None)
