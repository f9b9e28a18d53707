"""One renormalised backward pass reads what plain float64 autograd says, at any depth and scale."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from steadygrad._check import Setup, call, trace
from steadygrad.core.record import Record, record_of
from steadygrad.probe.flow import flow
from steadygrad.probe.subject import Readings, Subject, rng_states

WIDTH = 16


def subject_of(model: nn.Module, inputs: Any) -> Subject:
    setup = Setup(lambda m: call(m, inputs), None, None, 0)
    return trace(model, setup, rng_states())


def read(model: nn.Module, inputs: Any) -> Record:
    readings = flow(subject_of(model, inputs))
    return record_of(readings.rows, {**readings.facts, "blind": readings.blind})


def total(model: nn.Module, inputs: Any) -> float:
    facts = read(model, inputs).facts["flow"]
    return float(facts["total_decades"] + facts["pool_decades"])


def linear(
    width: int, out: int, variance: float, *, generator: torch.Generator | None = None
) -> nn.Linear:
    """Draw a linear layer without bias whose Var(W) fan_in is given."""
    layer = nn.Linear(width, out, bias=False)
    nn.init.normal_(layer.weight, 0.0, math.sqrt(variance / width), generator=generator)
    return layer


def chain(depth: int, width: int, variance: float, act: Callable[[], nn.Module]) -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [linear(width, width, variance, generator=generator), act()]
    return nn.Sequential(*layers)


class Residual(nn.Module):
    """Blocks with a skip around a norm, a layer and an activation."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(depth))
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + functional.gelu(layer(norm(x)))
        return x


class UNet(nn.Module):
    """Down, across, up, and a skip that is concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, 8, 3, padding=1)
        self.down = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.leave = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.enter(x).relu()
        low = self.down(first).relu()
        up = functional.interpolate(low, scale_factor=2.0)
        out: Tensor = self.leave(torch.cat([up, first], dim=1))
        return out


class Attention(nn.Module):
    """A block of attention with positions."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(WIDTH, 2, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.block(x)[:, 0])
        return out


class Recurrent(nn.Module):
    """The same layer over time, read at the last step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRU(8, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.cell(x)[0][:, -1])
        return out


def images() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(72, 4), nn.LogSoftmax(1),
    )  # fmt: skip


VECTORS, PICTURES, TOKENS = (8, WIDTH), (4, 3, 8, 8), (4, 6, WIDTH)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "a plain chain": (lambda: chain(6, WIDTH, 2.0, nn.ReLU), VECTORS),
    "an exploding chain": (lambda: chain(10, WIDTH, 50.0, nn.Tanh), VECTORS),
    "a vanishing chain": (lambda: chain(10, WIDTH, 0.2, nn.Sigmoid), VECTORS),
    "linear layers": (lambda: chain(5, WIDTH, 1.0, nn.Identity), VECTORS),
    "residual blocks": (Residual, VECTORS),
    "positions": (lambda: nn.Sequential(nn.Linear(WIDTH, 8), nn.SiLU(), nn.Linear(8, 3)), TOKENS),
    "convolutions": (images, PICTURES),
    "a u-net": (UNet, PICTURES),
    "attention": (Attention, TOKENS),
    "recurrence": (Recurrent, (4, 5, 8)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_total_is_what_plain_float64_autograd_says(name: str) -> None:
    build, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = build().double()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    out = model(x)
    cotangent = subject_of(model, x.detach().clone()).noise(out.detach())
    (gradient,) = torch.autograd.grad(out, x, cotangent)
    plain = math.log10(gradient.norm() / cotangent.norm())
    # 1e-6: norms of float64 tensors, added as a few dozen logarithms
    assert total(model, x.detach()) == pytest.approx(plain, abs=1e-6)
    # 1e-3: float32 keeps 7 digits of each of a few hundred sums
    assert total(model.float(), x.detach().float()) == pytest.approx(plain, abs=1e-3)


class Level(nn.Module):
    """Divide by the root mean square as by a constant, and remember its decades."""

    def forward(self, x: Tensor) -> Tensor:
        scale = x.detach().square().mean().sqrt()
        self.decades = -math.log10(scale)
        return x / scale


def test_two_hundred_layers_beyond_the_range_of_float32_are_read_exactly() -> None:
    plain, x = chain(200, WIDTH, float(WIDTH), nn.Identity), torch.randn(4, WIDTH)
    model = nn.Sequential(*[part for layer in plain for part in (layer, Level())])
    gradient = subject_of(plain, x).noise(x).double()
    start = gradient.norm()
    for layer in plain[-2::-2]:
        gradient = gradient @ layer.weight.detach().double()
    expected = math.log10(gradient.norm() / start)
    assert expected > 100
    read_total = total(model, x) - sum(m.decades for m in model if isinstance(m, Level))
    assert read_total == pytest.approx(expected, abs=1e-3)


def test_a_gradient_that_underflows_in_float32_is_read_in_full() -> None:
    model, x = chain(15, WIDTH, 1e-4, nn.Identity), torch.randn(4, WIDTH)
    wide = total(chain(15, WIDTH, 1e-4, nn.Identity).double(), x.double())
    assert wide < -25
    assert total(model, x) == pytest.approx(wide, abs=1e-3)


@pytest.mark.parametrize(
    ("variance", "factor"),
    [(1 / 3, 0.408), (1.0, 0.707), (2.0, 1.0)],
    ids=["default", "xavier", "he"],
)
def test_a_relu_layer_keeps_what_he_2015_says(variance: float, factor: float) -> None:
    torch.manual_seed(0)
    record = read(chain(12, 1024, variance, nn.ReLU), torch.randn(16, 1024))
    kept = 10 ** record.read("gain", "unit")
    # sqrt(Var(W) fan_in E f'^2), He 2015, equation 14; one layer varies by sqrt(5 / 1024) / 2
    assert float(np.exp(np.log(kept).mean())) == pytest.approx(factor, rel=0.02)
    assert kept == pytest.approx(factor, rel=0.12)


def test_torchs_default_is_a_third_of_the_variance() -> None:
    torch.manual_seed(0)
    layers = [part for _ in range(4) for part in (nn.Linear(1024, 1024), nn.ReLU())]
    record = read(nn.Sequential(*layers), torch.randn(16, 1024))
    assert 10 ** record.read("weight_gain", "weight") == pytest.approx(3**-0.5, rel=0.01)


# --- What is read where --------------------------------------------------------------------------


def test_units_stand_in_forward_order_with_their_activation() -> None:
    record = read(chain(3, WIDTH, 2.0, nn.ReLU), torch.randn(4, WIDTH))
    assert [(site.name, site.depth) for site in record.sites_of("unit")] == [
        ("0", 0), ("2", 1), ("4", 2)
    ]  # fmt: skip
    gain, weight, act = (record.read(m, "unit") for m in ("gain", "gain_weight", "gain_act"))
    assert gain == pytest.approx(weight + act, abs=1e-5)
    assert [site.name for site in record.sites_of("output")] == ["1", "3", "5"]


def test_gains_accumulate_towards_the_input() -> None:
    record = read(chain(4, WIDTH, 2.0, nn.ReLU), torch.randn(4, WIDTH))
    gain, below = record.read("gain", "unit"), record.read("cumulative", "unit")
    assert below == pytest.approx(gain[::-1].cumsum()[::-1] - gain, abs=1e-5)


@pytest.mark.parametrize("inplace", [False, True])
def test_an_activation_is_read_in_place_and_against_theory(inplace: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(linear(64, 64, 1.0), nn.ReLU(inplace), linear(64, 8, 1.0))
    record = read(model, torch.randn(64, 64))
    assert record.read("slope", "unit")[0] == pytest.approx(0.5, abs=0.05)
    assert record.read("slope_nominal", "unit")[0] == pytest.approx(0.5, abs=1e-3)
    assert record.read("pre_rms", "unit")[0] == pytest.approx(0.0, abs=0.1)
    assert record.read("op_zeros", "output")[0] == pytest.approx(0.5, abs=0.05)
    assert record.read("op_zeros_before", "output")[0] == pytest.approx(0.0, abs=1e-3)


def test_a_layer_over_positions_is_read_like_one_over_samples() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    flat = torch.randn(6, 8)
    samples, positions = read(layers, flat), read(layers, flat.view(2, 3, 8))
    for metric in ("weight_gain", "weight_in", "weight_out", "bias_ratio", "width"):
        one, other = samples.read(metric, "weight"), positions.read(metric, "weight")
        assert np.isfinite(one).all()
        assert one == pytest.approx(other, abs=1e-5)
    assert [site.fan_in for site in positions.sites_of("weight")] == [8, 8]


def test_a_faulty_branch_beside_the_trunk_is_read() -> None:
    model = Residual()
    with torch.no_grad():
        model.layers[1].weight.mul_(1e-3)
    record = read(model, torch.randn(8, WIDTH))
    names = [site.name for site in record.sites_of("weight")]
    assert names == ["layers.0", "layers.1", "layers.2"]
    gains = record.read("weight_gain", "weight")
    assert gains[1] - gains[0] == pytest.approx(-3, abs=0.2)


def test_a_shared_weight_is_read_at_each_use() -> None:
    layer = linear(WIDTH, WIDTH, 1.0)
    record = read(nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh()), torch.randn(4, WIDTH))
    assert [site.name for site in record.sites_of("weight")] == ["0", "0"]
    assert len(record.sites_of("unit")) == 2


def test_a_dead_layer_passes_nothing_and_stays_finite_above() -> None:
    model = chain(3, WIDTH, 2.0, nn.ReLU)
    model[2].bias = nn.Parameter(torch.full((WIDTH,), -1e3))
    model[4].bias = nn.Parameter(torch.ones(WIDTH))
    record = read(model, torch.randn(4, WIDTH))
    gain = record.read("gain", "unit")
    assert np.isfinite(gain[2])
    assert gain[1] == -math.inf
    assert math.isnan(gain[0])


def test_pooling_is_kept_apart() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    facts = read(model, torch.randn(2, 3, 34, 34)).facts["flow"]
    assert facts["pool_decades"] == pytest.approx(-math.log10(32), abs=1e-4)


class Constant(nn.Module):
    """An output that depends on a parameter but not on the input."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.bias.exp()


class Rounded(nn.Linear):
    """A layer whose output is an integer."""

    def __init__(self) -> None:
        super().__init__(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).long()


def test_why_the_flow_is_blind_is_said() -> None:
    broken = nn.Sequential(linear(4, 4, 1.0))
    with torch.no_grad():
        broken[0].weight[0, 0] = math.nan
    assert blind(flow(subject_of(broken, torch.ones(2, 4)))) == "the output is not finite"
    rounded = Rounded().requires_grad_(False)
    said = blind(flow(subject_of(rounded, torch.ones(2, 4))))
    assert said == "no output of the model carries a gradient"


def test_without_a_path_to_an_input_the_flow_is_blind() -> None:
    said = blind(flow(subject_of(Constant(), torch.ones(2, 4))))
    assert said == "no path of gradient leads from the output to an input"


def blind(readings: Readings) -> str:
    assert readings.rows == []
    assert set(readings.blind) == {"flow", "gain", "op_gain", "weight_gain"}
    assert len(set(readings.blind.values())) == 1
    return readings.blind["flow"]


def test_the_backward_pass_leaves_no_gradient_and_no_hook() -> None:
    model = chain(3, WIDTH, 2.0, nn.ReLU)
    subject = subject_of(model, torch.randn(4, WIDTH))
    (first,) = torch.autograd.grad(
        subject.outputs[0].sum(), subject.trace.inputs, retain_graph=True
    )
    flow(subject)
    assert all(p.grad is None for p in model.parameters())
    (again,) = torch.autograd.grad(
        subject.outputs[0].sum(), subject.trace.inputs, retain_graph=True
    )
    assert torch.equal(first, again)


def test_half_precision_reads_what_single_precision_reads() -> None:
    torch.manual_seed(0)
    model, x = chain(10, 32, 0.5, nn.ReLU), torch.randn(16, 32)
    single = total(model, x)
    # bfloat16 keeps 8 bits: 0.4 % per element, averaged over 512 of them
    assert total(model.bfloat16(), x.bfloat16()) == pytest.approx(single, abs=0.02)


class Optimized(nn.Module):
    """An image that is optimised so that a frozen network makes something of it."""

    def __init__(self, *layers: nn.Module, image: Tensor) -> None:
        super().__init__()
        self.body, self.image = nn.Sequential(*layers), nn.Parameter(image)
        self.body.requires_grad_(False)

    def forward(self) -> Tensor:
        result: Tensor = self.body(self.image)
        return result


@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_an_image_that_is_optimised_is_no_weight(kind: str) -> None:
    convs = [nn.Conv2d(3, 3, 3, padding=1) for _ in range(3)]
    layers = convs if kind == "conv" else [nn.Linear(8, 8) for _ in range(3)]
    image = torch.randn(2, 3, 8, 8) if kind == "conv" else torch.randn(4, 8)
    assert read(Optimized(*layers, image=image), ()).facts["flow"]["weights"] == 0
    assert read(nn.Sequential(*layers).requires_grad_(), image).facts["flow"]["weights"] == 3
