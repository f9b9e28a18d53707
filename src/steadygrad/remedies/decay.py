"""Weaker weight decay."""

from __future__ import annotations

from steadygrad.remedies._patch import carry_out, rounded
from steadygrad.remedies.remedy import Change, Scene, Unfit, remedy

USUAL = 1e-4


@remedy("weaker-decay", "optimizer", cures=("G410", "G411"), size=1)
def weaker_decay(scene: Scene) -> Change:
    """Divide weight decay by 1000, and to at most 1e-4, in every group.

    **When it fails.** Decay that is meant, as the regulariser of a large model, is lost. AdamW's
    decay is multiplied by the learning rate, so that 0.1 is usual there.

    **Reference.** Krizhevsky 2012, section 5: 5e-4 with a learning rate of 0.01; Loshchilov &
    Hutter 2019, section 2, on what decay does in Adam.
    """
    decays = [float(group.get("weight_decay", 0.0)) for group in scene.optimizer.param_groups]
    strongest = max(decays, default=0.0)
    if not strongest > USUAL:
        raise Unfit("No group of the optimizer has a weight decay above 1e-4.")
    factor = rounded(min(1e-3, USUAL / strongest), 3)
    patch = (
        "for group in optimizer.param_groups:\n"
        '    if "weight_decay" in group:\n'
        f'        group["weight_decay"] *= {factor:g}'
    )
    carry_out(scene, patch)
    return Change(patch)
