"""Norms on the queries and keys of attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its customary name

from steadygrad.remedies._insert import inserted
from steadygrad.remedies._layers import layers_of
from steadygrad.remedies.remedy import Change, Scene, Unfit, remedy

PAIRS = (("q_proj", "k_proj"), ("query", "key"), ("to_q", "to_k"), ("q_lin", "k_lin"), ("q", "k"))
WRITTEN = """\
# in each nn.MultiheadAttention, behind the projections:
# q, k = F.rms_norm(q, q.shape[-1:]), F.rms_norm(k, k.shape[-1:])"""


@remedy("qk-norm", "normalisation", cures=("G113", "G401", "G101"), size=4)
def qk_norm(scene: Scene) -> Change:
    """Put an RMS norm behind the projections of queries and of keys, over all heads together.

    Logits are then bounded. Projections are found by their names: q_proj and k_proj, query and key,
    to_q and to_k. In nn.MultiheadAttention, where they are computed inside of one function, that
    function is given projected and normed queries and keys, without weights that are learned.

    **When it fails.** Projections by other names, as one for all three, are not found. A trained
    model has to learn its attention again.

    **Reference.** Henry 2020 (arXiv 2010.04245); Dehghani 2023 (ViT-22B), section 2; over all heads
    as in OLMo 2 (2024), section 3.
    """
    norms = _projections(scene.model)
    inside = any(_is_packed(module) for module in scene.model.modules())
    if not norms and not inside:
        raise Unfit("No attention of this model has query and key projections of known names.")
    change = inserted(scene, norms) if norms else Change("")
    if not inside:
        return change
    patch = "\n".join([*([change.patch] if norms else []), WRITTEN])
    functions = {F.multi_head_attention_forward: normed_attention}
    return Change(patch, functions=functions, imitates=True)


def normed_attention(
    query: Tensor, key: Tensor, value: Tensor, width: int, heads: int, *rest: Any, **more: Any
) -> Any:  # what torch's returns
    """F.multi_head_attention_forward with normed queries and keys, where one weight is for all.

    Queries and keys are projected and normed here; the identity stands for their projections then.
    """
    weight, bias, *others = rest
    if weight is None or more.get("use_separate_proj_weight"):
        return F.multi_head_attention_forward(query, key, value, width, heads, *rest, **more)
    of_query, of_key, of_value = weight.chunk(3)
    of_both = (None, None) if bias is None else bias[: 2 * width].chunk(2)
    query = _normed(F.linear(query, of_query, of_both[0]))
    key = _normed(F.linear(key, of_key, of_both[1]))
    one = torch.eye(width, dtype=weight.dtype, device=weight.device)
    weight = torch.cat([one, one, of_value])
    if bias is not None:
        bias = torch.cat([torch.zeros_like(bias[: 2 * width]), bias[2 * width :]])
    return F.multi_head_attention_forward(
        query, key, value, width, heads, weight, bias, *others, **more
    )


def _normed(x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:])


def _projections(model: nn.Module) -> dict[str, str]:
    """Query and key projections by name, and the code of the norm for each."""
    known = layers_of(model)
    found: dict[str, str] = {}
    for parent, module in model.named_modules():
        for pair in PAIRS:
            names = [f"{parent}.{one}" if parent else one for one in pair]
            both = all(isinstance(module._modules.get(one), nn.Linear) for one in pair)
            if both and all(name in known for name in names):
                found |= {name: f"nn.RMSNorm({len(known[name].weight)})" for name in names}
    return found


def _is_packed(module: nn.Module) -> bool:
    return isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None
