"""Norms of transformers: before the branches, and on queries and keys."""

from __future__ import annotations

from torch import nn

from steadygrad.remedies._insert import inserted
from steadygrad.remedies._layers import layers_of
from steadygrad.remedies._patch import carry_out, listed
from steadygrad.remedies.remedy import Change, Scene, Unfit, remedy

TORCHS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
STACKS = (nn.TransformerEncoder, nn.TransformerDecoder)
PAIRS = (("q_proj", "k_proj"), ("query", "key"), ("to_q", "to_k"), ("q_lin", "k_lin"), ("q", "k"))
FIRST = """\
for name in {names}:
    model.get_submodule(name).norm_first = True"""
FINAL = """\
for name in {names}:
    stack = model.get_submodule(name)
    stack.norm = nn.LayerNorm(stack.layers[0].norm1.normalized_shape)
    stack.norm.to(stack.layers[0].norm1.weight)
    optimizer.param_groups[0]["params"] += stack.norm.parameters()"""


@remedy("pre-norm", "normalisation", cures=("G403", "G102", "G105", "G401"), size=2)
def pre_norm(scene: Scene) -> Change:
    """Move the norms of torch's transformer layers from behind the sums to before the branches.

    A stack without a norm at its end gets one, as nothing else bounds its output then.

    **When it fails.** Layers written by hand have to be changed by hand. What is trained with norms
    behind the sums, and with warm-up, often ends a little better.

    **Reference.** Xiong 2020, section 3.2 and theorem 1.
    """
    modules = dict(scene.model.named_modules())
    names = [n for n, one in modules.items() if isinstance(one, TORCHS) and not one.norm_first]
    if not names:
        raise Unfit("No nn.Transformer layer of this model has its norms behind the sums.")
    bare = [n for n, one in modules.items() if isinstance(one, STACKS) and _needs_norm(one)]
    patch = FIRST.format(names=listed(names))
    if bare:
        patch += "\n" + FINAL.format(names=listed(bare))
    carry_out(scene, patch)
    return Change(patch)


@remedy("qk-norm", "normalisation", cures=("G113", "G401", "G101"), size=4)
def qk_norm(scene: Scene) -> Change:
    """Put an RMS norm behind the projections of queries and of keys, over all heads together.

    Logits are then bounded by the norms' weights. Projections are found by their names: q_proj and
    k_proj, query and key, to_q and to_k.

    **When it fails.** nn.MultiheadAttention computes queries and keys inside of one function, where
    nothing can be put between. Fine-tuning a trained model has to learn its attention again.

    **Reference.** Henry 2020 (arXiv 2010.04245); Dehghani 2023 (ViT-22B), section 2; over all heads
    as in OLMo 2 (2024), section 3.
    """
    layers = layers_of(scene.model)
    pairs = [
        name
        for parent, module in scene.model.named_modules()
        for pair in PAIRS
        if all(isinstance(module._modules.get(one), nn.Linear) for one in pair)
        for name in (f"{parent}.{one}" if parent else one for one in pair)
        if name in layers
    ]
    if not pairs:
        raise Unfit("No attention of this model has query and key projections of known names.")
    norms = {name: f"nn.RMSNorm({len(layers[name].weight)})" for name in pairs}
    return inserted(scene, norms)


def _needs_norm(stack: nn.Module) -> bool:
    layers = stack._modules.get("layers")
    return stack._modules.get("norm") is None and bool(
        isinstance(layers, nn.ModuleList) and len(layers) and not layers[0].norm_first
    )
