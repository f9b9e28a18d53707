"""Steps that half precision would round away."""

from __future__ import annotations

import torch

from steadygrad.remedies._patch import carry_out
from steadygrad.remedies.remedy import Change, Scene, Unfit, remedy

HALF = (torch.float16, torch.bfloat16)
PATCH = """\
wide, dtypes = {}, {}
def widen(optimizer, *_):
    for p in (one for group in optimizer.param_groups for one in group["params"]):
        if p.grad is not None and p.dtype in (torch.float16, torch.bfloat16):
            grad, p.grad, dtypes[p] = p.grad.float(), None, p.dtype
            p.data = wide.get(p, p.data.float())
            p.grad = grad
def narrow(optimizer, *_):
    for p, dtype in dtypes.items():
        grad, p.grad, wide[p] = p.grad.to(dtype), None, p.data
        p.data = wide[p].to(dtype)
        p.grad = grad
    dtypes.clear()
optimizer.register_step_pre_hook(widen)
optimizer.register_step_post_hook(narrow)"""


@remedy("float32-weights", "optimizer", cures=("G405", "G005"), size=3)
def float32_weights(scene: Scene) -> Change:
    """Keep the weights in float32 where they are stepped, and round a copy for each pass.

    A step below half of the last bit of a weight is lost: 0.4 % of it in bfloat16, 0.05 % in
    float16. In float32 steps add up until the copy moves.

    **When it fails.** Memory is short: it takes 4 bytes more a parameter, and 4 a moment. Weights
    that something else than the optimizer writes (a checkpoint loaded later, averaging) are
    overwritten at the next step.

    **Reference.** Micikevicius 2018 (Mixed Precision Training), section 3.1.
    """
    groups = scene.optimizer.param_groups
    if not any(one.dtype in HALF for group in groups for one in group["params"]):
        raise Unfit("The optimizer steps no float16 or bfloat16 parameters.")
    carry_out(scene, PATCH)
    return Change(PATCH)
