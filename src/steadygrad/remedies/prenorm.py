"""Norms before the branches of a transformer instead of behind the sums."""

from __future__ import annotations

from torch import nn

from steadygrad.remedies._patch import carry_out, listed
from steadygrad.remedies.remedy import Change, Scene, Unfit, remedy

TORCHS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
STACKS = (nn.TransformerEncoder, nn.TransformerDecoder)
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


def _needs_norm(stack: nn.Module) -> bool:
    layers = stack._modules.get("layers")
    return stack._modules.get("norm") is None and bool(
        isinstance(layers, nn.ModuleList) and len(layers) and not layers[0].norm_first
    )
