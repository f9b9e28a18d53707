"""DeepNorm in torch's own post-norm transformer layers."""

from __future__ import annotations

from torch import nn

from steadygrad.core.theory import deep_norm as scales_of
from steadygrad.remedies._patch import carry_out, listed
from steadygrad.remedies.remedy import Change, Scene, Unfit, remedy

LINES = """\
for name in {names}:
    layer = model.get_submodule(name)
    for branch in layer.children():
        if isinstance(branch, nn.Dropout) and branch is not layer.dropout:
            branch.register_forward_hook(lambda module, args, output: output / {alpha:.6g})
    attentions = [one for one in layer.children() if isinstance(one, nn.MultiheadAttention)]
    weights = [layer.linear1.weight, layer.linear2.weight]
    weights += [one.out_proj.weight for one in attentions]
    weights += [one.in_proj_weight.data.chunk(3)[2] for one in attentions]
    for weight in weights:
        nn.init.xavier_normal_(weight, {beta:.6g})"""


@remedy("deep-norm", "initialisation", cures=("G403", "G102", "G105", "G401"), size=3)
def deep_norm(scene: Scene) -> Change:
    """Weigh the skip by alpha against each branch, and draw the branches' weights with gain beta.

    norm(x + F(x) / alpha) is norm(alpha x + F(x)): the branch is divided behind its dropout, which
    needs no change of the forward pass. alpha = (2N)^(1/4), beta = (8N)^(-1/4) for N layers;
    feed-forward, value, and output weights get beta, queries and keys stay. Only torch's own
    post-norm layers are changed.

    **When it fails.** An encoder with a decoder has other scales in the paper; here both count as
    one stack of N layers. Layers written by hand have to be changed by hand.

    **Reference.** Wang 2022 (DeepNet), figure 2; `core.theory.deep_norm`.
    """
    names = [
        name
        for name, module in scene.model.named_modules()
        if isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer))
        and not module.norm_first
        and _draws(module)
    ]
    if not names:
        raise Unfit("No trainable nn.Transformer layer has its norms behind the sums.")
    scales = scales_of(len(names))
    patch = LINES.format(names=listed(names), alpha=scales.alpha, beta=scales.beta)
    carry_out(scene, patch)
    return Change(patch)


def _draws(layer: nn.Module) -> bool:
    """Whether all weights are trainable, and queries, keys, and values stand in one of them."""
    attentions = [one for one in layer.children() if isinstance(one, nn.MultiheadAttention)]
    together = all(one.in_proj_weight is not None for one in attentions)
    return together and all(one.requires_grad for one in layer.parameters())
