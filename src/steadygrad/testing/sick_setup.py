"""Patients whose step, wiring, data, or loss is wrong; the network itself is fine."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 as everybody writes it

from steadygrad.testing import data, nets
from steadygrad.testing.case import Case, Patient, sick
from steadygrad.testing.setup import (
    Compare,
    Step,
    adam,
    on_digits,
    on_images,
    on_table,
    optimizer_of,
    sgd,
    supervised,
)


class Unregistered(nn.Module):
    """Hidden layers in a list: a plain one, or one that registers them."""

    def __init__(self, registered: bool) -> None:
        super().__init__()
        self.stem = nn.Linear(64, 32)
        layers = [nn.Linear(32, 32) for _ in range(3)]
        self.layers = nn.ModuleList(layers) if registered else layers
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores [batch, classes]."""
        x = F.relu(self.stem(x))
        for layer in self.layers:
            x = F.relu(layer(x))
        scores: Tensor = self.head(x)
        return scores


class TwoParts(nn.Module):
    """An encoder and a head, between which the graph may be cut."""

    def __init__(self, cut: str) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.head = nn.Linear(32, 10)
        self.cut = cut

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores [batch, classes]."""
        if self.cut == "no_grad":
            with torch.no_grad():
                h = self.encoder(x)
        else:
            h = self.encoder(x)
        if self.cut == "detach":
            h = h.detach()
        if self.cut == "round":
            h = h.round()
        scores: Tensor = self.head(h)
        return scores


class Embedder(nn.Module):
    """An image embedded, normalized, and compared with class vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 32), nn.ReLU())
        self.project = nn.Linear(32, 16)
        self.classes = nn.Parameter(torch.randn(10, 16))
        nets.fill(self, nets.he)

    def forward(self, x: Tensor) -> Tensor:
        """Return ten times the cosines [batch, classes]."""
        h = F.normalize(self.project(self.body(x)), dim=-1)
        cosines: Tensor = h @ F.normalize(self.classes, dim=-1).T
        return 10 * cosines


class Variational(nn.Module):
    """A variational autoencoder; `factor` scales what the log-variance head puts out."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 32), nn.ReLU())
        self.mean = nn.Linear(32, 8)
        self.logvar = nn.Linear(32, 8)
        self.decoder = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 64))
        nets.scaled(self, "logvar.weight", factor)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the reconstruction and the mean and log-variance of the code."""
        h = self.encoder(x)
        mean, logvar = self.mean(h), self.logvar(h)
        code = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
        return self.decoder(code), mean, logvar


class Exponential(nn.Module):
    """A rate that is the exponential of what a small network puts out."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.body = nets.Chain(3, 32, sizes=(12, 1))
        nets.scaled(self, "body.head.weight", factor)

    def forward(self, x: Tensor) -> Tensor:
        """Return rates [batch, 1]."""
        rates: Tensor = self.body(x).exp()
        return rates


def variational(factor: float = 1.0) -> Case:
    """Build a variational autoencoder of digits with its loss."""
    model, (x, _) = Variational(factor), data.digits()

    def loss(network: nn.Module) -> Tensor:
        out, mean, logvar = network(x)
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(1).mean()
        total: Tensor = F.mse_loss(out, x, reduction="sum") / len(x) + divergence
        return total

    return Case(model, x, loss, optimizer_of(model, adam()))


def _plain(step: Step) -> Case:
    return on_digits(nets.Chain(3), step=step)


def _in_dtype(dtype: torch.dtype, step: Step) -> Case:
    x, y = data.digits()
    model = nets.Chain(4).to(dtype)
    compare: Compare = lambda out, target: F.cross_entropy(out.float(), target)  # noqa: E731
    return supervised(model, x.to(dtype), y, compare, step)


def _swapped_head(late: bool) -> Case:
    model = nets.Chain(4)
    optimizer = torch.optim.Adam(model.parameters())
    model.head = nn.Linear(64, 10)
    if late:
        optimizer = torch.optim.Adam(model.parameters())
    x, y = data.digits()
    return Case(model, x, lambda m: F.cross_entropy(m(x), y), optimizer)


def _only(prefix: str) -> Case:
    model = nets.vgg10()
    x, y = data.images()
    chosen = [p for name, p in model.named_parameters() if name.startswith(prefix)]
    return Case(model, x, lambda m: F.cross_entropy(m(x), y), torch.optim.Adam(chosen))


def _unregistered(registered: bool) -> Case:
    return on_digits(Unregistered(registered), step=adam())


def _all_frozen(frozen: bool) -> Case:
    model = nets.Chain(3)
    optimizer = torch.optim.Adam(model.parameters())
    model.requires_grad_(not frozen)
    x, y = data.digits()
    return Case(model, x, lambda m: F.cross_entropy(m(x), y), optimizer)


def _hard_choice(hard: bool) -> Case:
    def compare(out: Tensor, y: Tensor) -> Tensor:
        if not hard:
            return F.cross_entropy(out, y)
        chosen = out.argmax(-1).float()
        return F.mse_loss(chosen, y.float()).requires_grad_()

    return on_digits(nets.Chain(3), compare, adam())


def _scaled_inputs(factor: float, shift: float = 0.0, depth: int = 3) -> Case:
    x, y = data.raw_digits()
    scaled = factor * x + shift if factor else (x - 4.9) / 6.0
    return supervised(nets.Chain(depth), scaled, y, step=sgd(0.05))


def _scaled_images(factor: float) -> Case:
    x, y = data.images()
    pixels = 128 + factor * x if factor else x
    return supervised(nets.vgg10(), pixels, y, step=sgd(0.003, 0.9))


def _scaled_column(factor: float) -> Case:
    x, y = data.table()
    x[:, 4] = factor * (x[:, 4] + 2)
    return supervised(nets.Chain(3, act=nn.Tanh, sizes=(12, 1)), x, y, F.mse_loss, sgd(0.05))


def _scaled_targets(factor: float, shift: float, step: Step | None = None) -> Case:
    compare: Compare = lambda out, y: F.mse_loss(out, factor * y + shift)  # noqa: E731
    return on_table(nets.Chain(3, sizes=(12, 1)), compare, step or adam())


def _shifted_labels(shift: int, compare: Compare = F.cross_entropy) -> Case:
    return on_digits(nets.Chain(3), lambda out, y: compare(out, y + shift), adam())


def _mask(factor: float) -> Case:
    x, _ = data.images()
    mask = factor * (x > 0).float()
    return supervised(nets.UNet(), x, mask, F.binary_cross_entropy_with_logits, adam())


def _against_all(fits: bool) -> Case:
    def compare(out: Tensor, y: Tensor) -> Tensor:
        return (out - (y if fits else y[:, 0])).square().mean()

    return on_table(nets.Chain(3, sizes=(12, 1)), compare, adam())


def _on_axis(axis: int) -> Case:
    compare: Compare = lambda out, y: F.nll_loss(F.log_softmax(out, axis), y)  # noqa: E731
    return on_digits(nets.Chain(3), compare, adam())


def _all_alike(alike: bool) -> Case:
    x, y = data.images()
    return supervised(nets.vgg10(), 0.0 * x if alike else x, y, step=adam())


def _shut_class(shut: bool) -> Case:
    model = nn.Sequential(nets.Chain(3), nn.ReLU() if shut else nn.Identity())
    with torch.no_grad():
        model.get_parameter("0.head.bias")[3] = -50.0 if shut else 0.0
    return on_digits(model, step=sgd(0.1))


def _decaying(decay: float) -> Case:
    return _plain(lambda parameters: torch.optim.SGD(parameters, 0.05, weight_decay=decay))


def _ignored(ignored: bool) -> Case:
    def compare(out: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(out, torch.full_like(y, -100) if ignored else y)

    x, y = data.tokens()
    return supervised(nets.Transformer(2), x, y, compare, adam())


def _empty_mask(empty: bool) -> Case:
    def compare(out: Tensor, y: Tensor) -> Tensor:
        mask = torch.zeros(len(y)) if empty else torch.ones(len(y))
        return (F.cross_entropy(out, y, reduction="none") * mask).sum() / mask.sum()

    return on_digits(nets.Chain(3), compare, adam())


def _nothing_but_padding(padding: bool) -> Case:
    def compare(out: Tensor, y: Tensor) -> Tensor:
        weight = torch.zeros(10) if padding else torch.ones(10)
        return F.cross_entropy(out, y, weight=weight, reduction="sum")

    return on_digits(nets.Chain(3), compare, sgd(1e-3))


def _rate(factor: float) -> Case:
    def compare(rate: Tensor, y: Tensor) -> Tensor:
        return F.poisson_nll_loss(rate, (y.abs() * 3).round(), log_input=False)

    return on_table(Exponential(factor), compare, adam())


def _blank(blank: bool) -> Case:
    x, y = data.digits()
    if blank:
        x[:2] = 0.0
    return supervised(Embedder(), x, y, step=sgd(0.05))


def _post_norm_cosine(zeros: bool) -> Case:
    def compare(out: Tensor, y: Tensor) -> Tensor:
        return 1 - F.cosine_similarity(out, F.one_hot(y, 10).float()).mean()

    x, y = data.digits()
    if zeros:
        x[:4] = 0.0
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    return supervised(nets.fill(model, nets.he), x, y, compare, sgd(0.1))


def _norms(idle: bool) -> Case:
    layers = [(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU()) for _ in range(12)]
    model = nn.Sequential(*(one for layer in layers for one in layer), nn.Linear(64, 10))
    for one in model:
        if isinstance(one, nn.BatchNorm1d):
            one.train(not idle)
    return on_digits(model, step=sgd(0.1))


STEP: tuple[Patient, ...] = (
    sick(
        "sgd-lr-10",
        "G401",
        "lr optimizer",
        lambda: _plain(sgd(100.0)),
        lambda: _plain(sgd(0.1)),
        "a hundred times the largest stable lr",
    ),
    sick(
        "adam-lr-1",
        "G401",
        "lr optimizer",
        lambda: on_digits(nets.Chain(6), step=adam(1.0)),
        lambda: on_digits(nets.Chain(6), step=adam(1e-3)),
        "every weight moves by one in the first step",
    ),
    sick(
        "momentum-on-a-large-lr",
        "G401",
        "lr optimizer",
        lambda: on_images(nets.vgg10(), step=sgd(3.0, 0.9)),
        lambda: on_images(nets.vgg10(), step=sgd(0.003, 0.9)),
        "an lr fit for batch norm, without batch norm",
    ),
    sick(
        "sgd-lr-1e-9",
        "G402",
        "lr optimizer",
        lambda: _plain(sgd(1e-9)),
        lambda: _plain(sgd(0.1)),
        "nothing will have moved after a million steps",
    ),
    sick(
        "adam-lr-1e-11",
        "G402 G405",
        "lr optimizer",
        lambda: _plain(adam(1e-11)),
        lambda: _plain(adam()),
        "below the resolution of most weights",
    ),
    sick(
        "sgd-lr-1e-6",
        "G402",
        "lr optimizer",
        lambda: _plain(sgd(1e-6)),
        lambda: _plain(sgd(1e-2)),
        "an lr of Adam's for SGD: ten thousand steps get nowhere",
    ),
    sick(
        "weight-decay-10",
        "G410",
        "optimizer",
        lambda: _decaying(10.0),
        lambda: _decaying(1e-4),
        "every step halves the weights",
    ),
    sick(
        "bfloat16-weights-lr-1e-5",
        "G405",
        "optimizer lr layers head",
        lambda: _in_dtype(torch.bfloat16, adam(1e-5)),
        lambda: _in_dtype(torch.float32, adam(1e-3)),
        "steps of 1e-5 are lost in rounding: no weight moves",
    ),
    sick(
        "float16-weights-small-sgd",
        "G405",
        "optimizer lr layers head",
        lambda: _in_dtype(torch.float16, sgd(1e-4)),
        lambda: _in_dtype(torch.float32, sgd(1e-1)),
        "SGD steps below float16's resolution",
    ),
)

WIRING: tuple[Patient, ...] = (
    sick(
        "layers-in-a-plain-list",
        "G501 G502",
        "layers",
        lambda: _unregistered(False),
        lambda: _unregistered(True),
        "layers in a list are not registered: neither moved nor saved",
    ),
    sick(
        "detached-in-the-middle",
        "G501",
        "encoder",
        lambda: on_digits(TwoParts("detach"), step=adam()),
        lambda: on_digits(TwoParts(""), step=adam()),
        "detach() cuts the encoder off",
    ),
    sick(
        "no-grad-around-the-encoder",
        "G501",
        "encoder",
        lambda: on_digits(TwoParts("no_grad"), step=adam()),
        lambda: on_digits(TwoParts(""), step=adam()),
        "a no_grad block left from evaluation",
    ),
    sick(
        "rounded-in-the-middle",
        "G501",
        "encoder",
        lambda: on_digits(TwoParts("round"), step=adam()),
        lambda: on_digits(TwoParts(""), step=adam()),
        "the slope of round is zero everywhere",
    ),
    sick(
        "everything-frozen",
        "G501",
        "layers head loss optimizer",
        lambda: _all_frozen(True),
        lambda: _all_frozen(False),
        "requires_grad is off everywhere, yet the optimizer holds the parameters",
    ),
    sick(
        "argmax-before-the-loss",
        "G501",
        "loss layers head",
        lambda: _hard_choice(True),
        lambda: _hard_choice(False),
        "argmax has no gradient; requires_grad_ on the loss hides the error",
    ),
    sick(
        "optimizer-before-head-swap",
        "G502",
        "head",
        lambda: _swapped_head(False),
        lambda: _swapped_head(True),
        "the optimizer holds the old head: the new one never moves",
    ),
    sick(
        "optimizer-misses-the-features",
        "G502",
        "features",
        lambda: _only("classifier"),
        lambda: _only(""),
        "trainable features get gradients, but no optimizer",
    ),
)

DATA: tuple[Patient, ...] = (
    sick(
        "pixels-to-4000",
        "G601",
        "data",
        lambda: _scaled_inputs(255.0),
        lambda: _scaled_inputs(0.0),
        "raw intensities from 0 to 4080",
    ),
    sick(
        "images-around-128",
        "G601",
        "data",
        lambda: _scaled_images(60.0),
        lambda: _scaled_images(0.0),
        "images from 0 to 255 as they come from the file",
    ),
    sick(
        "one-column-of-a-million",
        "G601",
        "data",
        lambda: _scaled_column(1e6),
        lambda: _scaled_column(1.0),
        "one column in euros among standardized ones",
    ),
    sick(
        "targets-of-a-million",
        "G602",
        "target loss",
        lambda: _scaled_targets(3e5, 1e6),
        lambda: _scaled_targets(1.0, 0.0),
        "house prices as they are: Adam needs a million steps to get there",
    ),
    sick(
        "targets-of-1e8-under-sgd",
        "G602",
        "target loss",
        lambda: _scaled_targets(1e8, 0.0, sgd(0.05)),
        lambda: _scaled_targets(1.0, 0.0, sgd(0.05)),
        "the first gradient is 1e8 (Stack Overflow 52800582)",
    ),
    sick(
        "labels-from-one",
        "G603",
        "target",
        lambda: _shifted_labels(1),
        lambda: _shifted_labels(0),
        "labels 1 to 10 for ten classes",
    ),
    sick(
        "label-minus-one",
        "G603",
        "target",
        lambda: _shifted_labels(-1),
        lambda: _shifted_labels(0),
        "background labelled -1",
    ),
    sick(
        "mask-of-0-and-255",
        "G603 G602",
        "target loss",
        lambda: _mask(255.0),
        lambda: _mask(1.0),
        "a mask read from a file: binary cross-entropy without a lower bound",
    ),
    sick(
        "targets-against-all",
        "G607",
        "loss",
        lambda: _against_all(False),
        lambda: _against_all(True),
        "predictions [n, 1] minus targets [n]: n * n differences, of which the mean is learned",
    ),
    sick(
        "blank-images",
        "G608",
        "data",
        lambda: _all_alike(True),
        lambda: _all_alike(False),
        "whole numbers divided by 255 are zero: all images are blank",
    ),
    sick(
        "softmax-over-samples",
        "G305",
        "loss layers head",
        lambda: _on_axis(0),
        lambda: _on_axis(1),
        "log_softmax over the samples before nll_loss",
    ),
    sick(
        "class-behind-a-last-relu",
        "G303",
        "0 1 loss",
        lambda: _shut_class(True),
        lambda: _shut_class(False),
        "a ReLU behind the scores shuts one class for every sample",
    ),
    sick(
        "all-labels-ignored",
        "G604",
        "target loss",
        lambda: _ignored(True),
        lambda: _ignored(False),
        "every label is the ignored one: the loss is NaN, the gradient zero",
    ),
    sick(
        "empty-mask",
        "G604",
        "target loss",
        lambda: _empty_mask(True),
        lambda: _empty_mask(False),
        "a mean over nothing: zero by zero",
    ),
    sick(
        "all-class-weights-zero",
        "G604",
        "target loss",
        lambda: _nothing_but_padding(True),
        lambda: _nothing_but_padding(False),
        "a weight of zero for every class: the loss is zero whatever is predicted",
    ),
    sick(
        "exponential-head",
        "G605",
        "body loss",
        lambda: _rate(300.0),
        lambda: _rate(1.0),
        "the exponential of a free prediction overflows",
    ),
    sick(
        "unbounded-log-variance",
        "G605",
        "logvar loss",
        lambda: variational(400.0),
        lambda: variational(1.0),
        "nothing bounds the log-variance whose exponential is taken",
    ),
    sick(
        "blank-image-normalized",
        "G606",
        "project body loss",
        lambda: _blank(True),
        lambda: _blank(False),
        "a zero vector through normalize: a gradient of 1e12",
    ),
    sick(
        "cosine-of-zero",
        "G606",
        "2 loss",
        lambda: _post_norm_cosine(True),
        lambda: _post_norm_cosine(False),
        "the cosine with a zero vector has a slope of 1e8",
    ),
    sick(
        "idle-batch-norms",
        "G506",
        "1",
        lambda: _norms(True),
        lambda: _norms(False),
        "twelve batch norms in evaluation mode, which nobody has filled",
    ),
)

PATIENTS = STEP + WIRING + DATA
