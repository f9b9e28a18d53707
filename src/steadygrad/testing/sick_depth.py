"""Patients whose signal or gradient grows or shrinks over the depth, or starts in a bad place."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from steadygrad.core.finding import Severity
from steadygrad.testing import data, nets
from steadygrad.testing.case import Case, Patient, sick
from steadygrad.testing.setup import (
    adam,
    constant,
    on_digits,
    on_images,
    sgd,
    supervised,
    without_loss,
)

LAYERS = "layers head"


class Repeated(nn.Module):
    """A chain of width-preserving layers with an operation of the user's own after each."""

    def __init__(self, depth: int, after: Callable[[Tensor], Tensor], width: int = 64) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.head = nn.Linear(width, 10)
        self.after = after
        nets.fill(self, nets.orthogonal())

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores [batch, classes]."""
        for layer in self.layers:
            x = self.after(layer(x))
        scores: Tensor = self.head(x)
        return scores


class NormChain(nn.Module):
    """A chain of linear, norm, and ReLU with no skip around them."""

    def __init__(self, depth: int, width: int = 64, skip: bool = False) -> None:
        super().__init__()
        self.stem = nn.Linear(64, width)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU())
            for _ in range(depth)
        )
        self.head = nn.Linear(width, 10)
        self.skip = skip
        nets.fill(self, nets.he)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores [batch, classes]."""
        h = self.stem(x)
        for layer in self.layers:
            h = h + layer(h) if self.skip else layer(h)
        scores: Tensor = self.head(h)
        return scores


class AttentionOnly(nn.Module):
    """Attention layers with neither skips nor feed-forward layers between them."""

    def __init__(self, depth: int, width: int = 32, skip: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Linear(8, width)
        self.layers = nn.ModuleList(nets.Attention(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores [batch, classes] from images of eight rows."""
        h = self.embedding(x.reshape(-1, 8, 8))
        for layer in self.layers:
            h = h + layer(h) if self.skip else layer(h)
        scores: Tensor = self.head(self.norm(h).mean(1))
        return scores


class Tokens(nn.Module):
    """Images read as eight tokens by nn.TransformerEncoder."""

    def __init__(self, depth: int, redraw: bool) -> None:
        super().__init__()
        self.embedding = nn.Linear(8, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)
        if redraw:
            for parameter in self.encoder.parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores [batch, classes]."""
        scores: Tensor = self.head(self.encoder(self.embedding(x.reshape(-1, 8, 8))).mean(1))
        return scores


def chain(
    depth: int = 30,
    act: nets.Activation = nn.ReLU,
    weight: nets.Fill | None = None,
    width: int = 64,
) -> nets.Chain:
    """Build a chain of linear layers, with torch's initialization or the given one."""
    model = nets.Chain(depth, width, act)
    if weight is not None:
        nets.fill(model, weight)
    return model


def he_30() -> Case:
    """Build the healthy twin of most deep chains."""
    return on_digits(chain(weight=nets.he), step=adam())


def _one_layer(factor: float) -> Case:
    model = nets.scaled(chain(weight=nets.he), "layers.24.weight", factor)
    return on_digits(model, step=sgd(0.05))


def _vgg(weight: nets.Fill | None) -> Case:
    model = nets.ConvChain((16,) * 8 + ("M",) + (32,) * 8)
    return on_images(model if weight is None else nets.fill(model, weight), step=adam())


def _conv_layer(factor: float) -> Case:
    return on_images(nets.scaled(nets.vgg10(), "features.7.weight", factor), step=sgd(0.05))


def _tiny_under_norm(std: float) -> Case:
    model = nets.Chain(12, 64, norm=nn.LayerNorm)
    return on_digits(nets.fill(model, nets.normal(std)), step=adam())


def _lora(a_is_zero: bool) -> Case:
    return on_digits(nets.adapted(a_is_zero), step=adam(1e-2))


def _garbage(kind: str) -> Case:
    model = nets.Chain(4, 64)
    weight = model.get_parameter("layers.2.weight")
    words = torch.randint(-(2**31), 2**31 - 1, weight.shape, dtype=torch.int64).to(torch.int32)
    if kind == "pointers":
        words = torch.where(torch.rand(weight.shape) < 0.2, words % 2**16, torch.zeros_like(words))
    floats = words.view(torch.float32)
    with torch.no_grad():
        weight.copy_(torch.where(floats.isfinite(), floats, torch.zeros_like(floats)))
    return on_digits(model, step=adam())


def _twin_units() -> Case:
    model = nets.fill(nets.Chain(4, 64), nets.he)
    with torch.no_grad():
        for place in (0, 2, 4):
            weight = model.get_submodule(f"layers.{place}").get_parameter("weight")
            weight.copy_(weight[:1].expand_as(weight).clone())
    return on_digits(model, step=adam())


def _graph(depth: int) -> Case:
    x, adjacency, y = data.graph()
    return supervised(nets.GraphNet(depth), (x, adjacency), y, step=adam(1e-2))


def _post_norm(pre: bool) -> Case:
    x, y = data.digits(16)
    return supervised(nets.Rows(18, 64, pre=pre), x, y, step=adam(5e-3))


WEAK: tuple[Patient, ...] = (
    sick(
        "default-init-relu-30",
        "G201",
        LAYERS,
        lambda: on_digits(chain(), step=adam()),
        he_30,
        "nn.Linear's own init has Var(W) fan_in = 1/3, ReLU needs 2",
    ),
    sick(
        "default-init-gelu-30",
        "G201",
        LAYERS,
        lambda: on_digits(chain(act=nn.GELU)),
        he_30,
        "nn.Linear's own init under GELU, thirty layers deep",
    ),
    sick(
        "default-init-silu-30",
        "G201",
        LAYERS,
        lambda: without_loss(on_digits(chain(act=nn.SiLU))),
        None,
        "nn.Linear's own init under SiLU, thirty layers deep",
    ),
    sick(
        "default-init-tanh-30",
        "G201",
        LAYERS,
        lambda: on_digits(chain(act=nn.Tanh), step=adam()),
        lambda: on_digits(chain(act=nn.Tanh, weight=nets.orthogonal(1.1)), step=adam()),
        "nn.Linear's own init under tanh, thirty layers deep",
    ),
    sick(
        "xavier-relu-30",
        "G201",
        LAYERS,
        lambda: on_digits(chain(weight=nn.init.xavier_normal_), step=sgd(0.01)),
        he_30,
        "Xavier's init keeps half of the variance under ReLU (He 2015, figure 3)",
    ),
    sick(
        "tiny-init-relu-20",
        "G201",
        LAYERS,
        lambda: on_digits(chain(20, weight=nets.normal(0.01)), step=adam()),
        he_30,
        "N(0, 0.01^2) weights shrink everything ninefold per layer",
    ),
    sick(
        "default-init-conv-16",
        "G201",
        "features",
        lambda: _vgg(None),
        lambda: _vgg(nets.he),
        "sixteen convolutions without norm or skip in nn.Conv2d's own init",
    ),
    sick(
        "tiny-init-under-layernorm",
        "G201 G104",
        "layers head",
        lambda: _tiny_under_norm(1e-6),
        lambda: _tiny_under_norm(0.1),
        "weights so small that the norm's eps outweighs the signal",
    ),
    sick(
        "one-weak-layer",
        "G201",
        "layers.24 layers.25",
        lambda: _one_layer(1e-3),
        lambda: _one_layer(1.0),
        "one layer of thirty is a thousand times too small",
    ),
    sick(
        "one-weak-convolution",
        "G201",
        "features.7 features.8",
        lambda: _conv_layer(1e-3),
        lambda: _conv_layer(1.0),
        "one convolution of nine is a thousand times too small",
    ),
)

STRONG: tuple[Patient, ...] = (
    sick(
        "normal-init-relu-20",
        "G202",
        LAYERS,
        lambda: on_digits(chain(20, weight=nets.normal(1.0)), step=sgd(0.01)),
        he_30,
        "N(0, 1) weights multiply signal and gradient by six at every layer",
    ),
    sick(
        "normal-init-tanh-20",
        "G202 G302",
        LAYERS,
        lambda: on_digits(chain(20, nn.Tanh, nets.normal(1.0)), step=adam()),
        he_30,
        "N(0, 1) weights saturate tanh and make the network chaotic",
    ),
    sick(
        "normal-init-conv",
        "G202",
        "features classifier",
        lambda: on_images(nets.fill(nets.vgg10(), nets.normal(1.0)), step=sgd(0.05)),
        lambda: on_images(nets.vgg10(), step=sgd(0.05)),
        "N(0, 1) kernels in nine convolutions",
    ),
    sick(
        "one-strong-layer",
        "G202",
        "layers.24 layers.25",
        lambda: _one_layer(1e3),
        lambda: _one_layer(1.0),
        "one layer of thirty is a thousand times too large",
    ),
    sick(
        "one-strong-convolution",
        "G202",
        "features.7 features.8",
        lambda: _conv_layer(1e2),
        lambda: _conv_layer(1.0),
        "one convolution of nine is a hundred times too large",
    ),
    sick(
        "plain-residual-40",
        "G205",
        "blocks",
        lambda: on_digits(nets.fill(nets.Residual(), nets.he), step=sgd(0.01)),
        lambda: on_digits(nets.fill(nets.Residual(scale=0.025), nets.he), step=sgd(0.01)),
        "each of forty blocks doubles the variance: no norm, no scale on the branch",
    ),
    sick(
        "plain-residual-40-without-loss",
        "G205",
        "blocks",
        lambda: without_loss(on_digits(nets.fill(nets.Residual(), nets.he))),
        None,
        "the same, seen from the inputs alone",
    ),
)

SYMMETRIC: tuple[Patient, ...] = (
    sick(
        "all-weights-zero",
        "G203",
        LAYERS,
        lambda: on_digits(nets.fill(chain(4), nn.init.zeros_), step=adam()),
        lambda: on_digits(chain(4), step=adam()),
        "nothing but biases can ever learn",
    ),
    sick(
        "all-weights-equal",
        "G203",
        LAYERS,
        lambda: on_digits(nets.fill(chain(4), constant(0.05)), step=adam()),
        lambda: on_digits(chain(4), step=adam()),
        "all units of a layer are and stay the same",
    ),
    sick(
        "all-kernels-equal",
        "G203",
        "features classifier",
        lambda: on_images(nets.fill(nets.ConvChain((8, 8, 8)), constant(0.05)), step=adam(1e-2)),
        lambda: on_images(nets.ConvChain((8, 8, 8)), step=adam(1e-2)),
        "all channels of a convolution are and stay the same",
    ),
    sick(
        "units-are-copies",
        "G203",
        LAYERS,
        _twin_units,
        lambda: on_digits(chain(4, weight=nets.he), step=adam()),
        "one random row repeated for every unit",
    ),
    sick(
        "lora-a-and-b-zero",
        "G203 G501",
        "layers",
        lambda: _lora(True),
        lambda: _lora(False),
        "both factors of the update are zero, so neither gets a gradient",
    ),
    sick(
        "uninitialised-weight",
        "G204",
        "layers.2",
        lambda: _garbage("any"),
        lambda: on_digits(chain(4), step=adam()),
        "torch.empty without an init: any bit pattern",
    ),
    sick(
        "uninitialised-weight-of-small-integers",
        "G204",
        "layers.2",
        lambda: _garbage("pointers"),
        lambda: on_digits(chain(4), step=adam()),
        "torch.empty without an init: integers read as floats are denormal",
    ),
    Patient(
        "cloned-encoder-layers",
        lambda: on_digits(Tokens(6, False), step=adam()),
        frozenset({"G206"}),
        ("encoder",),
        "nn.TransformerEncoder copies one layer with its numbers (pytorch#86274)",
        lambda: on_digits(Tokens(6, True), step=adam()),
        Severity.note,
    ),
)

FLOW: tuple[Patient, ...] = (
    sick(
        "doubled-after-each-layer",
        "G101 G103",
        LAYERS,
        lambda: on_digits(Repeated(30, lambda h: 2.0 * h), step=sgd(0.01)),
        lambda: on_digits(Repeated(30, lambda h: h), step=sgd(0.01)),
        "the weights keep the norm, a forgotten factor of two does not",
    ),
    sick(
        "squared-after-each-layer",
        "G101 G103",
        LAYERS,
        lambda: on_digits(Repeated(4, lambda h: 3.0 * h.square())),
        lambda: on_digits(Repeated(4, torch.relu)),
        "an activation that grows faster than linearly: signal grows doubly exponentially",
    ),
    sick(
        "batchnorm-without-skip-60",
        "G101 G304",
        "layers stem",
        lambda: on_digits(NormChain(60), step=sgd(0.1)),
        lambda: on_digits(NormChain(60, skip=True), step=sgd(0.1)),
        "batch norm multiplies the gradient by 1.21 per layer (Yang 2019)",
    ),
    sick(
        "halved-after-each-layer",
        "G102 G104",
        LAYERS,
        lambda: on_digits(Repeated(30, lambda h: 0.4 * h), step=adam()),
        lambda: on_digits(Repeated(30, lambda h: h), step=adam()),
        "the weights keep the norm, a factor of 0.4 does not",
    ),
    sick(
        "sigmoid-stack-10",
        "G102 G201 G302",
        LAYERS,
        lambda: on_digits(chain(10, nn.Sigmoid, nn.init.xavier_normal_), step=adam()),
        lambda: on_digits(chain(10, nn.Tanh, nn.init.xavier_normal_), step=adam()),
        "the slope of a sigmoid is at most a quarter",
    ),
    sick(
        "averaged-over-and-over",
        "G104 G102",
        LAYERS,
        lambda: on_digits(Repeated(24, lambda h: (h + h.roll(1, -1) + h.roll(2, -1)) / 3)),
        lambda: on_digits(Repeated(24, lambda h: h)),
        "a running mean after each layer keeps a third of the variance",
    ),
    sick(
        "oversmoothed-graph",
        "G105 G104",
        "convs head",
        lambda: _graph(32),
        lambda: _graph(2),
        "after many averages over neighbours all nodes look alike",
    ),
    sick(
        "attention-only-12",
        "G105 G104 G102 G201",
        "layers",
        lambda: on_digits(AttentionOnly(12), step=adam()),
        lambda: on_digits(AttentionOnly(12, skip=True), step=adam()),
        "attention without skips collapses to rank one (Dong 2021)",
    ),
    sick(
        "post-norm-without-warmup",
        "G403 G401",
        "lr optimizer",
        lambda: _post_norm(False),
        lambda: _post_norm(True),
        "post-norm at this lr needs a warm-up (Xiong 2020)",
    ),
)

PATIENTS = WEAK + STRONG + SYMMETRIC + FLOW
