"""Healthy networks that look ill: each deceives some simple rule, and none may raise an alarm."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 as everybody writes it
from torch.nn.utils import parametrizations

from steadygrad.testing import data, nets
from steadygrad.testing.case import Case, Patient
from steadygrad.testing.setup import (
    adam,
    on_digits,
    on_images,
    on_sequences,
    on_table,
    optimizer_of,
    sgd,
    supervised,
    without_loss,
)
from steadygrad.testing.sick_setup import variational


class Scaled(nn.Module):
    """A residual block whose branch is multiplied by a learned number or vector."""

    def __init__(self, width: int, start: float, vector: bool) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.gamma = nn.Parameter(torch.full((width,) if vector else (1,), start))

    def forward(self, x: Tensor) -> Tensor:
        """Return x + gamma * branch(x)."""
        out: Tensor = x + self.gamma * self.branch(x)
        return out


class PerStep(nn.Module):
    """A GRU that predicts the next value at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(1, 32, batch_first=True)
        self.head = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return predictions [batch, steps, 1]."""
        out: Tensor = self.head(self.rnn(x)[0])
        return out


class Frozen(nn.Module):
    """A frozen backbone and a new head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nets.fill(nets.Chain(4, 64, sizes=(64, 32)), nets.he).requires_grad_(False)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores [batch, classes]."""
        scores: Tensor = self.head(self.backbone(x))
        return scores


class Taught(nn.Module):
    """A student that is compared with a frozen average of itself (BYOL, Grill 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Sequential(
            nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 32)
        )
        self.teacher = nn.Sequential(
            nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 32)
        )
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)
        self.predictor = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the prediction and what the teacher says."""
        with torch.no_grad():
            goal = self.teacher(x + 0.1 * torch.randn_like(x))
        return self.predictor(self.student(x + 0.1 * torch.randn_like(x))), goal


class Experts(nn.Module):
    """A mixture of experts with one choice per sample; some get few samples, one gets none."""

    def __init__(self, count: int = 8) -> None:
        super().__init__()
        self.stem = nn.Linear(64, 32)
        self.router = nn.Linear(32, count)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)) for _ in range(count)
        )
        self.head = nn.Linear(32, 10)
        with torch.no_grad():
            self.router.bias[-1] = -20.0

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores [batch, classes]."""
        h = self.stem(x)
        weight, choice = self.router(h).softmax(-1).max(-1)
        mixed = torch.zeros_like(h)
        for number, expert in enumerate(self.experts):
            rows = (choice == number).nonzero().squeeze(1)
            if len(rows):
                mixed = mixed.index_add(0, rows, weight[rows, None] * expert(h[rows]))
        scores: Tensor = self.head(h + mixed)
        return scores


class Contrast(nn.Module):
    """Two views of an image, each embedded and normalized."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
        self.log_temperature = nn.Parameter(torch.tensor(0.07).log())

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return cosines over the temperature [batch, batch]."""
        a, b = (F.normalize(self.body(view), dim=-1) for view in (x, y))
        return a @ b.T / self.log_temperature.exp()


class Adversary(nn.Module):
    """A generator judged by a frozen discriminator."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(
            nn.Linear(16, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64), nn.Tanh()
        )
        self.judge = discriminator().requires_grad_(False)

    def forward(self, z: Tensor) -> Tensor:
        """Return the judgement of what was generated."""
        out: Tensor = self.judge(self.generator(z))
        return out


class Bag(nn.Module):
    """Bags of sparse word embeddings of which a batch sees few."""

    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(5000, 16, sparse=sparse)
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores [batch, classes]."""
        scores: Tensor = self.head(self.bag(x))
        return scores


class Dense(nn.Module):
    """A densely connected block: each layer sees all layers before it."""

    def __init__(self, layers: int = 6, growth: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(16 + growth * number),
                nn.ReLU(),
                nn.Conv2d(16 + growth * number, growth, 3, padding=1, bias=False),
            )
            for number in range(layers)
        )
        self.norm = nn.BatchNorm2d(16 + growth * layers)
        self.head = nn.Linear(16 + growth * layers, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores [batch, classes]."""
        h = self.stem(x)
        for layer in self.layers:
            h = torch.cat([h, layer(h)], 1)
        scores: Tensor = self.head(F.relu(self.norm(h)).mean((2, 3)))
        return scores


class Equilibrium(nn.Module):
    """A state that is updated ten times by the same layer and the input."""

    def __init__(self) -> None:
        super().__init__()
        self.inject = nn.Linear(64, 64)
        self.update = nn.Linear(64, 64, bias=False)
        self.head = nn.Linear(64, 10)
        nn.init.orthogonal_(self.update.weight, 0.9)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores [batch, classes]."""
        drive, state = self.inject(x), torch.zeros_like(x)
        for _ in range(10):
            state = torch.tanh(self.update(state) + drive)
        scores: Tensor = self.head(state)
        return scores


class Temporal(nn.Module):
    """A temporal convolution network with weight norm and dilation (Bai 2018)."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 16, 16, 16, 16)
        self.convs = nn.ModuleList(
            parametrizations.weight_norm(nn.Conv1d(widths[i], widths[i + 1], 3, dilation=2**i))
            for i in range(4)
        )
        self.head = nn.Conv1d(16, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return predictions [batch, steps, 1]."""
        h = x.transpose(1, 2)
        for number, conv in enumerate(self.convs):
            y = F.relu(conv(F.pad(h, (2 * 2**number, 0))))
            h = y if number == 0 else h + y
        out: Tensor = self.head(h)
        return out.transpose(1, 2)


class Separable(nn.Module):
    """Depthwise separable convolutions with batch norm (MobileNet)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(1, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU6(),
        ]
        for before, after in ((16, 16), (16, 32), (32, 32), (32, 64)):
            layers += [
                nn.Conv2d(before, before, 3, padding=1, groups=before, bias=False),
                nn.BatchNorm2d(before),
                nn.ReLU6(),
                nn.Conv2d(before, after, 1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU6(),
            ]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores [batch, classes]."""
        scores: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return scores


class Half(nn.Module):
    """A network that computes in bfloat16 while its weights stay float32."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nets.fill(nets.Chain(6), nets.he)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores [batch, classes]."""
        with torch.autocast("cpu", torch.bfloat16):
            scores: Tensor = self.body(x)
        return scores.float()


def discriminator() -> nn.Module:
    """Build a discriminator with spectral norm (Miyato 2018)."""
    layers = [parametrizations.spectral_norm(nn.Linear(64, size)) for size in (64, 64, 1)]
    return nn.Sequential(layers[0], nn.LeakyReLU(0.2), layers[1], nn.LeakyReLU(0.2), layers[2])


def _lenet(act: nets.Activation) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), act(), nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 3), act(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(144, 84), act(), nn.Linear(84, 10),
    )  # fmt: skip


def _alexnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Dropout(), nn.Linear(512, 128), nn.ReLU(),
        nn.Dropout(), nn.Linear(128, 10),
    )  # fmt: skip


def _chain(depth: int, act: nets.Activation, weight: nets.Fill) -> nn.Module:
    return nets.fill(nets.Chain(depth, 64, act), weight)


def _scaled_blocks(start: float, vector: bool, count: int = 20) -> Case:
    blocks = [Scaled(64, start, vector) for _ in range(count)]
    return on_digits(nn.Sequential(*blocks, nn.Linear(64, 10)), step=adam())


def _fixup() -> Case:
    model = nets.fill(nets.Residual(20), nets.he)
    for block in model.get_submodule("blocks").children():
        nn.init.zeros_(block.get_parameter("lin2.weight"))
        nets.scaled(block, "lin1.weight", 20**-0.5)
    nn.init.zeros_(model.get_parameter("head.weight"))
    return on_digits(model, step=adam())


def _zero_gamma() -> Case:
    model = nets.ResNet20()
    for block in model.blocks:
        nn.init.zeros_(block.get_parameter("bn2.weight"))
    return on_images(model, step=sgd(0.1, 0.9))


def _adapted() -> Case:
    return on_digits(nets.adapted(), step=adam(1e-2))


def _language(depth: int, tied: bool = False) -> Case:
    x, y = data.tokens()
    return supervised(nets.Transformer(depth, tied=tied), x, y, step=adam(3e-3))


def _taught() -> Case:
    model, (x, _) = Taught(), data.digits()

    def loss(network: nn.Module) -> Tensor:
        said, goal = network(x)
        return -F.cosine_similarity(said, goal).mean()

    return Case(model, x, loss, optimizer_of(model, adam()))


def _contrast() -> Case:
    x, _ = data.digits()
    views = (x + 0.3 * torch.randn_like(x), x + 0.3 * torch.randn_like(x))
    return supervised(Contrast(), views, torch.arange(len(x)), step=adam())


def _adversary() -> Case:
    real = torch.ones(64, 1)
    compare = F.binary_cross_entropy_with_logits
    return supervised(Adversary(), torch.randn(64, 16), real, compare, adam(2e-4))


def _judge() -> Case:
    x, _ = data.digits()
    both, real = (
        torch.cat([x, torch.rand_like(x)]),
        torch.cat([torch.ones(64, 1), torch.zeros(64, 1)]),
    )
    return supervised(discriminator(), both, real, F.binary_cross_entropy_with_logits, adam())


def _summed() -> Case:
    return on_digits(nets.Chain(3), lambda a, b: F.cross_entropy(a, b, reduction="sum"), sgd(1e-3))


def _times(factor: float) -> Case:
    return on_digits(nets.Chain(3), lambda a, b: factor * F.cross_entropy(a, b), adam())


def _reconstruction() -> Case:
    pixels, _ = data.raw_digits()
    x = pixels / 16
    return supervised(nets.Autoencoder(out=nn.Sigmoid), x, x, F.binary_cross_entropy, adam())


def _siamese() -> Case:
    x, y = data.digits(128)
    body = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
    same = (y[:64] == y[64:]).float()

    def loss(model: nn.Module) -> Tensor:
        distance = F.pairwise_distance(model(x[:64]), model(x[64:]))
        return (same * distance.square() + (1 - same) * F.relu(1 - distance).square()).mean()

    return Case(body, x[:64], loss, optimizer_of(body, adam()))


def _bag() -> Case:
    words = torch.randint(5000, (64, 12))
    labels = (words.float().mean(1) > 2500).long()
    model = Bag(sparse=True)
    step = torch.optim.SGD(model.parameters(), lr=1.0)
    return Case(model, words, lambda m: F.cross_entropy(m(words), labels), step)


def _waves(model: nn.Module) -> Case:
    x, y = data.waves()
    return supervised(model, x, y, F.mse_loss, adam(3e-3))


def _graph() -> Case:
    x, adjacency, y = data.graph()
    return supervised(nets.GraphNet(2), (x, adjacency), y, step=adam(1e-2))


def _segmentation() -> Case:
    x, _ = data.images()
    return supervised(nets.UNet(), x, (x > 0).float(), F.binary_cross_entropy_with_logits, adam())


def _lstm(length: int) -> Case:
    model = nets.Recurrent(nn.LSTM(1, 32, batch_first=True), 32)
    with torch.no_grad():
        model.rnn.get_parameter("bias_ih_l0")[32:64] = 3.0
    x, _ = data.waves(64, length)
    pitch = (x[:, 1:] - x[:, :-1]).abs().mean((1, 2))
    return supervised(model, x, (pitch > pitch.median()).long(), step=adam(3e-3))


def _norm_first() -> Case:
    return on_digits(nets.Chain(8, 64, norm=nn.BatchNorm1d), step=sgd(0.1))


def _policy() -> Case:
    x, chosen = data.digits()
    reward = torch.randn(64)
    advantage = (reward - reward.mean()) / reward.std()
    compare: Callable[[Tensor, Tensor], Tensor] = lambda out, y: (  # noqa: E731 a formula
        F.cross_entropy(out, y, reduction="none") * advantage
    ).mean()
    return supervised(nets.Chain(3), x, chosen, compare, adam())


def _table() -> Case:
    return on_table(nets.Chain(4, sizes=(12, 1)), F.mse_loss, adam())


def _raw_targets() -> Case:
    def compare(out: Tensor, y: Tensor) -> Tensor:
        raw = 2e5 + 5e4 * y
        return F.mse_loss(out, (raw - 2e5) / 5e4)

    return on_table(nets.Chain(3, sizes=(12, 1)), compare, adam())


def healthy(rows: Sequence[tuple[str, Callable[[], Case], str]]) -> tuple[Patient, ...]:
    """Make patients that have nothing."""
    return tuple(Patient(name, make, why=why) for name, make, why in rows)


HEALTHY: tuple[Patient, ...] = healthy(
    [
        (
            "he-relu-30",
            lambda: on_digits(_chain(30, nn.ReLU, nets.he), step=adam()),
            "a single draw of thirty layers of width 64 strays by a factor of three",
        ),
        (
            "orthogonal-tanh-20",
            lambda: on_digits(_chain(20, nn.Tanh, nets.orthogonal(1.05)), step=adam()),
            "tanh shrinks the signal slowly and is not saturated",
        ),
        (
            "selu-40",
            lambda: on_digits(_chain(40, nn.SELU, nets.lecun), step=adam()),
            "forty layers without norm or skip that normalize themselves",
        ),
        (
            "resnet-20",
            lambda: on_images(nets.ResNet20(), step=sgd(0.1, 0.9)),
            "batch norm and skips",
        ),
        ("pre-norm-8", lambda: _language(8), "the stream grows, -inf masks, unused positions"),
        ("pre-norm-2-tied", lambda: _language(2, True), "one matrix is embedding and head"),
        ("u-net", _segmentation, "most of the gradient takes the skips"),
        ("vgg-10", lambda: on_images(nets.vgg10(), step=adam()), "no norm, no skip, He's init"),
        ("lstm-50", lambda: _lstm(50), "remembers, as its forget gates start open"),
        ("gru-per-step", lambda: _waves(PerStep()), "forgets, and need not remember"),
        ("lora-b-zero", _adapted, "a zero factor: A has no gradient until B has moved"),
        ("fixup-20", _fixup, "the last layer of each branch and the head are zero"),
        ("rezero-20", lambda: _scaled_blocks(0.0, False), "every branch is multiplied by zero"),
        (
            "layerscale-1e-6",
            lambda: _scaled_blocks(1e-6, True),
            "gradients in a branch are a million times smaller",
        ),
        ("zero-gamma-resnet", _zero_gamma, "each branch ends in a zero batch norm weight"),
        ("frozen-backbone", lambda: on_digits(Frozen(), step=adam()), "most has no gradient"),
        ("averaged-teacher", _taught, "a frozen copy of a part, evaluated without gradient"),
        ("rare-experts", lambda: on_digits(Experts(), step=adam()), "one expert sees no sample"),
        ("variational", variational, "exp of a log-variance near zero"),
        ("contrast", _contrast, "normalized vectors over a small temperature"),
        ("generator", _adversary, "gradients pass through a frozen judge"),
        ("judge-spectral-norm", _judge, "weights are divided by their largest singular value"),
        ("summed-loss", _summed, "gradients are as large as the batch"),
        ("loss-times-a-million", lambda: _times(1e6), "only the size of the gradient changes"),
        ("loss-by-a-million", lambda: _times(1e-6), "only the size of the gradient changes"),
        (
            "default-mlp-3",
            lambda: on_digits(nets.Chain(3), step=adam()),
            "three layers as they come",
        ),
        (
            "default-mlp-3-sgd",
            lambda: on_digits(nets.Chain(3), step=sgd(0.1)),
            "three layers as they come, under SGD",
        ),
        ("lenet", lambda: on_images(_lenet(nn.Tanh), step=adam()), "tanh and torch's own init"),
        ("alexnet", lambda: on_images(_alexnet(), step=adam()), "five layers of torch's own init"),
        (
            "alexnet-without-loss",
            lambda: without_loss(on_images(_alexnet())),
            "the same, seen from the inputs alone",
        ),
        ("autoencoder-sigmoid", _reconstruction, "a sigmoid that binary cross-entropy wants"),
        ("siamese", _siamese, "one body, called twice, for pairs"),
        ("sparse-bag", _bag, "sparse gradients, and most rows have none"),
        ("regression", _table, "a standardized target"),
        ("regression-raw-target", _raw_targets, "house prices, standardized in the loss"),
        (
            "dropout",
            lambda: on_digits(
                nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10)),
                step=adam(),
            ),
            "half of the units are zero",
        ),
        ("separable", lambda: on_images(Separable(), step=sgd(0.05, 0.9)), "a fan-in of nine"),
        ("dense-block", lambda: on_images(Dense(), step=adam()), "a short trunk, many branches"),
        ("equilibrium", lambda: on_digits(Equilibrium(), step=adam()), "one layer, ten times"),
        ("temporal-weight-norm", lambda: _waves(Temporal()), "weights made of two parameters"),
        (
            "bfloat16-autocast",
            lambda: on_digits(Half(), step=adam()),
            "coarse numbers, fine weights",
        ),
        ("batchnorm-8", _norm_first, "biases before a norm have no gradient"),
        ("graph-2", _graph, "nodes are averaged with their neighbours"),
        ("policy-gradient", _policy, "a noisy loss around zero"),
        (
            "remembers-5",
            lambda: on_sequences(
                nets.Recurrent(nn.GRU(4, 32, batch_first=True), 32), 5, adam(1e-2)
            ),
            "a short memory is enough",
        ),
    ]
)
