"""Draws against closed forms: second moments, gradients, and the shapes of weights."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steadygrad.core.theory import deep_norm as scales
from steadygrad.core.theory import lstm_cell_ratio
from steadygrad.probe.gain import critical
from steadygrad.remedies.biases import zero_bias
from steadygrad.remedies.classical import kaiming_init, orthogonal_init, xavier_init
from steadygrad.remedies.critical import critical_init
from steadygrad.remedies.dead import revive
from steadygrad.remedies.deepnorm import deep_norm
from steadygrad.remedies.delta import delta_orthogonal
from steadygrad.remedies.jacobian import jacobian_init
from steadygrad.remedies.level import level_init
from steadygrad.remedies.lsuv import lsuv
from steadygrad.remedies.recurrence import chrono_init, orthogonal_recurrence
from steadygrad.remedies.remedy import Remedy, Scene, Unfit
from steadygrad.remedies.residual import depth_scaled_residual, zero_branches
from steadygrad.testing.nets import (
    Chain,
    ConvChain,
    Recurrent,
    Residual,
    ResNet20,
    Rows,
    Transformer,
)


def scene(model: nn.Module, x: Tensor, where: tuple[str, ...] = ()) -> Scene:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def loss(m: nn.Module) -> Tensor:
        out: Tensor = m(x).square().mean()
        return out

    return Scene(model, optimizer, loss, where)


def deep(act: Callable[[], nn.Module], remedy: Remedy, depth: int = 30) -> tuple[float, float]:
    """How many decades signal and gradient change over the layers of a deep chain."""
    torch.manual_seed(0)
    model, x = Chain(depth, 128, act).double(), torch.randn(32, 64).double()
    remedy.apply(scene(model, x))
    h = [model.layers[0](x)]
    for layer in model.layers[1:]:
        h.append(layer(h[-1]))
    last, first = h[-2], h[0]
    (back,) = torch.autograd.grad(last, first, torch.randn_like(last))
    signal = (last.square().mean() / first.square().mean()).detach()
    gradient = back.square().sum() / last.numel()
    return math.log10(float(signal)) / 2, math.log10(float(gradient)) / 2


@pytest.mark.parametrize("act", [nn.ReLU, nn.Tanh, nn.SELU, nn.ELU, lambda: nn.LeakyReLU(0.3)])
def test_level_init_holds_signal_and_gradient_over_thirty_layers(
    act: Callable[[], nn.Module],
) -> None:
    signal, gradient = deep(act, level_init)
    assert abs(signal) < 0.5
    assert abs(gradient) < 1.0


def test_level_init_gives_each_layer_the_second_moment_of_the_first() -> None:
    torch.manual_seed(0)
    model, x = Chain(30, 256), torch.randn(256, 64)
    level_init.apply(scene(model, x))
    for layer in model.layers:
        x = layer(x)
        if isinstance(layer, nn.Linear):
            assert 1 / 3 < float(x.detach().square().mean()) < 3


def test_critical_init_holds_what_the_exact_gain_of_gelu_does_not() -> None:
    signal, gradient = deep(nn.GELU, critical_init)
    assert abs(signal) < 0.3
    assert abs(gradient) < 0.5
    assert abs(deep(nn.GELU, level_init)[1]) > 0.5


def test_critical_init_of_gelu_brings_every_layer_to_its_fixed_point() -> None:
    torch.manual_seed(0)
    model, x = Chain(8, 256, nn.GELU), 3 * torch.randn(64, 64)
    critical_init.apply(scene(model, x))
    expected = critical(nn.GELU()).second_moment
    for layer in model.layers:
        x = layer(x)
        if isinstance(layer, nn.Linear):
            assert float(x.detach().square().mean()) == pytest.approx(expected, rel=0.5)
    assert float(model.head(x).detach().square().mean()) < 2.0


def test_critical_init_of_tanh_is_on_the_critical_line() -> None:
    model = Chain(10, 128, nn.Tanh)
    critical_init.apply(scene(model, torch.randn(32, 64)))
    variance = float(model.layers[4].weight.detach().square().mean()) * 128
    assert variance == pytest.approx(1.76095, rel=1e-4)
    assert float(model.layers[4].bias.detach().var()) == pytest.approx(0.05, rel=0.5)


def test_critical_init_says_that_relu_has_no_critical_pair() -> None:
    with pytest.raises(Unfit, match="critical"):
        critical_init.apply(scene(Chain(5, 16), torch.randn(4, 64)))


def test_lsuv_makes_the_variance_of_every_layer_one() -> None:
    model, x = Chain(15, 64, nn.GELU), torch.randn(64, 64)
    lsuv.apply(scene(model, x))
    for layer in model.layers:
        x = layer(x)
        if isinstance(layer, nn.Linear):
            assert float(x.detach().var()) == pytest.approx(1.0, rel=1e-2)


@pytest.mark.parametrize("act", [nn.Sigmoid, nn.Tanh, nn.ReLU])
def test_jacobian_init_holds_the_gradient_even_of_sigmoid(act: Callable[[], nn.Module]) -> None:
    assert abs(deep(act, jacobian_init)[1]) < 0.7


def test_delta_orthogonal_kernels_are_orthogonal_at_their_centers_and_zero_around() -> None:
    model = ConvChain((8, 16, 16), nn.Tanh)
    delta_orthogonal.apply(scene(model, torch.randn(4, 1, 8, 8)))
    weight = model.features[4].weight.detach().double()
    center = weight[:, :, 1, 1]
    gain = center.norm() ** 2 / 16
    assert torch.allclose(center.T @ center, gain * torch.eye(16).double(), atol=1e-5)
    assert weight.norm() == pytest.approx(center.norm())


def test_weights_have_the_variances_of_their_papers() -> None:
    torch.manual_seed(0)
    shape = scene(nn.Sequential(nn.Linear(300, 400)), torch.randn(2, 300))
    weight = shape.model.get_parameter("0.weight")
    for remedy, expected in ((xavier_init, 2 / 700), (kaiming_init, 2 / 300)):
        remedy.apply(shape)
        assert float(weight.detach().var()) == pytest.approx(expected, rel=0.05)
    orthogonal_init.apply(shape)  # as many columns of length sqrt(400 / 300)
    assert torch.allclose(weight.T @ weight, torch.eye(300) * 4 / 3, atol=1e-4)


def test_grouped_and_transposed_convolutions_keep_the_second_moment() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(32, 32, 3, padding=1, padding_mode="circular", groups=32),
        nn.ConvTranspose2d(32, 32, 4, stride=2, padding=1),
        nn.Conv2d(32, 64, 3, padding=1, padding_mode="circular", groups=4),
    )
    x = torch.randn(8, 32, 16, 16)
    level_init.apply(scene(model, x))
    for layer in model:
        before, x = x, layer(x)
        assert 0.7 < float((x.square().mean() / before.square().mean()).detach()) < 1.3


def test_frozen_tied_and_computed_weights_stay() -> None:
    model = Transformer(1, 16, tied=True)
    head = model.head.weight.clone()
    model.blocks[0].up.requires_grad_(False)
    up = model.blocks[0].up.weight.clone()
    nn.utils.parametrizations.weight_norm(model.blocks[0].down)
    down = model.blocks[0].down.weight.clone()
    level_init.apply(scene(model, torch.randint(50, (2, 5))))
    assert torch.equal(model.head.weight, head)
    assert torch.equal(model.blocks[0].up.weight, up)
    assert torch.equal(model.blocks[0].down.weight, down)


def test_input_weights_of_recurrent_layers_are_orthogonal_for_each_gate() -> None:
    model = Recurrent(nn.LSTM(12, 8, batch_first=True), 8)
    level_init.apply(scene(model, torch.randn(2, 3, 12)))
    for gate in model.rnn.weight_ih_l0.chunk(4):
        assert torch.allclose(gate @ gate.T, torch.eye(8), atol=1e-5)


# --- Residual branches ----------------------------------------------------------------------------


def test_zero_branches_make_each_block_the_identity() -> None:
    model, x = Residual(4, 16), torch.randn(8, 64)
    zero_branches.apply(scene(model, x))
    assert torch.equal(model(x), model.head(model.stem(x)))
    assert all(bool(block.lin1.weight.any()) for block in model.blocks)


def test_zero_branches_zero_the_norm_that_ends_a_branch() -> None:
    model = ResNet20((4, 8, 8))
    change = zero_branches.apply(scene(model, torch.randn(4, 1, 8, 8)))
    zero = [name for name, one in model.named_modules() if name.endswith("bn2")]
    assert len(zero) == 9
    plain = [name for name in zero if not bool(model.get_parameter(f"{name}.weight").any())]
    assert len(plain) == 7  # the first blocks of two stages have a projected skip
    assert all(bool(block.conv2.weight.any()) for block in model.blocks)
    assert "conv" not in change.patch


@pytest.mark.parametrize("pre", [True, False])
def test_branches_of_transformers_are_found(pre: bool) -> None:
    model = Rows(3, 16, pre)
    zero_branches.apply(scene(model, torch.randn(4, 64)))
    zero = {name for name, one in model.named_parameters() if not one.any() and one.dim() > 1}
    ends = {f"blocks.{i}.{end}.weight" for i in range(3) for end in ("attention.proj", "down")}
    assert zero == ends


def test_depth_scaled_branches_add_up_to_one() -> None:
    model, x = Residual(4, 16), torch.randn(8, 64)
    before = model.blocks[0].lin2.weight.clone()
    depth_scaled_residual.apply(scene(model, x))
    assert torch.allclose(model.blocks[0].lin2.weight, before / 2)


def test_without_residual_sums_there_is_nothing_to_zero() -> None:
    with pytest.raises(Unfit):
        zero_branches.apply(scene(Chain(4, 8), torch.randn(2, 64)))


def test_deep_norm_is_the_norm_of_alpha_x_plus_the_branch() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    model, x = nn.TransformerEncoder(layer, 4), torch.randn(2, 5, 16)
    deep_norm.apply(scene(model, x))
    alpha, first = scales(4).alpha, model.layers[0]
    branch = first.self_attn(x, x, x, need_weights=False)[0]
    middle = first.norm1(alpha * x + branch)
    expected = first.norm2(alpha * middle + first.linear2(F.relu(first.linear1(middle))))
    assert torch.allclose(first(x), expected, atol=1e-4)


# --- Biases, units, time --------------------------------------------------------------------------


def test_zero_bias_zeroes_where_the_finding_points() -> None:
    model = Chain(4, 8)
    zero_bias.apply(scene(model, torch.randn(2, 64), ("layers.2",)))
    assert not model.layers[2].bias.any()
    assert model.layers[0].bias.any()


def test_revive_draws_dead_units_and_leaves_the_others() -> None:
    torch.manual_seed(0)
    model, x = Chain(4, 8), torch.randn(64, 64)
    with torch.no_grad():
        model.layers[0].bias[:3] = -100.0
    before = model.layers[0].weight.clone()
    change = revive.apply(scene(model, x))
    assert "[0, 1, 2]" in change.patch
    assert torch.equal(model.layers[0].weight[3:], before[3:])
    assert bool((model.layers[:2](x).amax(0) > 0).all())


def test_revive_draws_what_a_dead_layer_has_left_dead_behind_it() -> None:
    torch.manual_seed(0)
    model, x = Chain(4, 8), torch.randn(64, 64)
    with torch.no_grad():
        for layer in (model.layers[0], model.layers[2]):
            layer.bias.fill_(-100.0)
    revive.apply(scene(model, x, ("layers.0",)))
    for upto in (2, 4):
        assert bool((model.layers[:upto](x).amax(0) > 0).any())


def test_revive_knows_channels_and_functions() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.conv(x))

    model = Net()
    with torch.no_grad():
        model.conv.bias[2] = -100.0
    assert "[2]" in revive.apply(scene(model, torch.randn(4, 1, 6, 6))).patch


def test_recurrent_weights_are_orthogonal_and_forget_biases_span_the_sequence() -> None:
    torch.manual_seed(0)
    model, x = Recurrent(nn.LSTM(3, 50, batch_first=True), 50), torch.randn(2, 40, 3)
    orthogonal_recurrence.apply(scene(model, x))
    chrono_init.apply(scene(model, x))
    for gate in model.rnn.weight_hh_l0.chunk(4):
        assert torch.allclose(gate @ gate.T, torch.eye(50), atol=1e-5)
    forget = (model.rnn.bias_ih_l0 + model.rnn.bias_hh_l0)[50:100].detach()
    horizons = [1 / (1 - lstm_cell_ratio(float(one))) for one in forget]
    assert min(horizons) >= 2
    assert 30 < max(horizons) <= 40
