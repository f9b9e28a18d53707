"""Where norms are put, and where they are not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steadygrad.remedies.attention import normed_attention, qk_norm
from steadygrad.remedies.instead import Instead
from steadygrad.remedies.norms import batch_norm, group_norm, layer_norm, rms_norm
from steadygrad.remedies.prenorm import pre_norm
from steadygrad.remedies.remedy import Remedy, Scene, Unfit
from steadygrad.testing.nets import Chain, ConvChain, ResNet20


def scene(model: nn.Module, x: Tensor, where: tuple[str, ...] = ()) -> Scene:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def loss(m: nn.Module) -> Tensor:
        out: Tensor = m(x).square().mean()
        return out

    return Scene(model, optimizer, loss, where)


def normed(model: nn.Module) -> list[str]:
    return [n.removesuffix(".steadygrad_norm") for n, _ in model.named_modules() if "_norm" in n]


@pytest.mark.parametrize("remedy", [batch_norm, layer_norm, rms_norm])
def test_all_hidden_layers_have_a_norm_and_the_last_has_none(remedy: Remedy) -> None:
    model, x = Chain(4, 8), torch.randn(6, 64)
    remedy.apply(scene(model, x))
    assert normed(model) == ["layers.0", "layers.2", "layers.4"]
    assert float(model.layers[0](x).detach().square().mean()) == pytest.approx(1.0, rel=1e-2)


def test_only_the_layers_of_the_finding_have_a_norm() -> None:
    model = Chain(4, 8)
    batch_norm.apply(scene(model, torch.randn(6, 64), ("layers.2", "loss")))
    assert normed(model) == ["layers.2"]


def test_convolutions_are_normed_over_channels() -> None:
    model, x = ConvChain((4, 8, 6)), torch.randn(3, 1, 6, 6)
    group_norm.apply(scene(model, x))
    assert normed(model) == ["features.0", "features.2", "features.4"]
    assert [model.features[i].steadygrad_norm.num_groups for i in (0, 2, 4)] == [4, 8, 6]


def test_layers_that_have_a_norm_are_left() -> None:
    with pytest.raises(Unfit):
        batch_norm.apply(scene(ResNet20((4, 4, 4)), torch.randn(2, 1, 8, 8), ("blocks.0.conv1",)))


def test_a_batch_of_one_is_not_normed_over_the_batch() -> None:
    with pytest.raises(Unfit):
        batch_norm.apply(scene(Chain(3, 8), torch.randn(1, 64)))


def test_without_a_loss_hidden_modules_are_normed_in_their_order() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    batch_norm.apply(Scene(model, optimizer))
    assert normed(model) == ["0"]
    assert isinstance(model[0].steadygrad_norm, nn.BatchNorm2d)


def test_pre_norm_gives_the_stack_a_last_norm() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    given = scene(nn.TransformerEncoder(layer, 2), torch.randn(2, 3, 8))
    pre_norm.apply(given)
    encoder = given.model
    assert all(one.norm_first for one in encoder.layers)
    assert isinstance(encoder.norm, nn.LayerNorm)
    held = {id(one) for one in given.optimizer.param_groups[0]["params"]}
    assert id(encoder.norm.weight) in held
    with pytest.raises(Unfit):
        pre_norm.apply(given)


def test_queries_and_keys_are_normed_and_values_are_not() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.to_q, self.to_k, self.to_v = (nn.Linear(8, 8) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            scores = self.to_q(x) @ self.to_k(x).transpose(-2, -1)
            out: Tensor = scores.softmax(-1) @ self.to_v(x)
            return out

    model, x = Attention(), 100 * torch.randn(2, 5, 8)
    qk_norm.apply(scene(model, x))
    assert normed(model) == ["to_q", "to_k"]
    assert float((model.to_q(x) @ model.to_k(x).transpose(-2, -1)).detach().abs().max()) <= 8.01


def test_torchs_attention_is_given_normed_queries_and_keys() -> None:
    torch.manual_seed(0)
    attention, x = nn.MultiheadAttention(8, 2, batch_first=True), 100 * torch.randn(2, 5, 8)
    change = qk_norm.apply(scene(nn.Sequential(attention), x.new_zeros(1)))
    assert change.functions == {F.multi_head_attention_forward: normed_attention}
    with Instead(change.functions):
        out, _ = attention(x, x, x, need_weights=False)
    q, k, v = F.linear(x, attention.in_proj_weight, attention.in_proj_bias).chunk(3, -1)
    q, k = (F.rms_norm(one, (8,)) for one in (q, k))
    parts = [one.reshape(2, 5, 2, 4).transpose(1, 2) for one in (q, k, v)]
    mixed = F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
    assert torch.allclose(out, attention.out_proj(mixed), rtol=1e-4, atol=1e-4)
