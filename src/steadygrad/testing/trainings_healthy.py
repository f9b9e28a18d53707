"""Trainings that look ill and are not: each has fooled a tool, or a person."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 as everybody writes it
from torch.optim import LBFGS, SGD, Adam, AdamW, Optimizer, SparseAdam
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.checkpoint import checkpoint

from steadygrad.testing import data, nets
from steadygrad.testing.setup import adam, sgd
from steadygrad.testing.training_case import Train, Training, fit
from steadygrad.testing.trainings_precision import Residual


def _classified(
    model: nn.Module,
    optimizer: Optimizer,
    steps: int = 100,
    change: Callable[[int, Tensor], Tensor] = lambda _step, x: x,
) -> nn.Module:
    """Classify digits with any optimizer."""

    def loss_of(step: int) -> Tensor:
        x, y = data.digits(32)
        return F.cross_entropy(model(change(step, x)), y)

    return fit(model, optimizer, loss_of, steps)


def _calibrated() -> nn.Module:
    """A loss scale that starts much too large: the first steps are skipped."""
    model = Residual()
    optimizer = AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=30)
    for _ in range(150):
        x, y = data.digits(32)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = F.cross_entropy(model(x).float(), y)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
    return model


def _accumulated() -> nn.Module:
    """Four backward passes before each step."""
    model = nets.Chain(3)
    optimizer = SGD(model.parameters(), lr=0.1)
    for step in range(240):
        x, y = data.digits(16)
        (F.cross_entropy(model(x), y) / 4).backward()
        if step % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()
    return model


def _cleared_late() -> nn.Module:
    """Gradients are cleared between the forward pass and the backward pass."""
    model = nets.Chain(3)
    optimizer = Adam(model.parameters())
    criterion = nn.CrossEntropyLoss()
    for _ in range(100):
        x, y = data.digits(32)
        loss = criterion(model(x), y)
        model.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def _logged() -> nn.Module:
    """Clipping with an infinite threshold, to log the norm."""
    model = nets.Chain(3)
    optimizer = Adam(model.parameters())

    def loss_of(_step: int) -> Tensor:
        x, y = data.digits(32)
        return F.cross_entropy(model(x), y)

    def log(_step: int) -> None:
        nn.utils.clip_grad_norm_(model.parameters(), torch.inf)

    return fit(model, optimizer, loss_of, 100, log)


def _adversaries() -> nn.Module:
    """A generator and a judge: neither loss has to fall."""
    generator = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
    judge = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
    for_generator = Adam(generator.parameters(), lr=2e-4, betas=(0.5, 0.999))
    for_judge = Adam(judge.parameters(), lr=2e-4, betas=(0.5, 0.999))
    for _ in range(200):
        angle = 2 * math.pi * torch.rand(64)
        real, fake = torch.stack([angle.cos(), angle.sin()], 1), generator(torch.randn(64, 8))
        for_judge.zero_grad()
        told = judge(real), judge(fake.detach())
        F.softplus(-told[0]).mean().add(F.softplus(told[1]).mean()).backward()
        for_judge.step()
        for_generator.zero_grad()
        F.softplus(-judge(fake)).mean().backward()
        for_generator.step()
    return nn.ModuleList([generator, judge])


def _warmed_up(steps: int) -> nn.Module:
    """An lr that rises from nothing, and falls to nothing after a while."""
    model = nets.Transformer(2)
    optimizer = AdamW(model.parameters(), lr=3e-3)
    schedule = LambdaLR(
        optimizer,
        lambda step: min(step / 50, 0.5 + 0.5 * math.cos(math.pi * min(step / 150, 1.0))),
    )
    for _ in range(steps):
        x, y = data.tokens(8, 16)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model


def _at_the_floor() -> nn.Module:
    """Fine-tuning where noise is all that is left of the loss."""
    model = nets.Chain(3, sizes=(12, 1))
    x, y = data.table(1024)
    steps = torch.optim.Adam(model.parameters(), lr=3e-3)
    for lr, count in ((3e-3, 300), (1e-5, 200)):
        steps.param_groups[0]["lr"] = lr
        for _ in range(count):
            chosen = torch.randint(len(x), (32,))
            steps.zero_grad()
            noisy = y[chosen] + 0.3 * torch.randn(32, 1)
            F.mse_loss(model(x[chosen]), noisy).backward()
            steps.step()
    return model


def _tuned() -> nn.Module:
    """A network that has learned (its head by least squares), trained on with a small lr."""
    body, head = nn.Sequential(nn.Linear(64, 64), nn.ReLU()), nn.Linear(64, 10)
    x, y = data.digits(512)
    with torch.no_grad():
        h = body(x)
        wanted = F.one_hot(y, 10).float()
        solution = torch.linalg.lstsq(h.T @ h + torch.eye(64), h.T @ wanted).solution
        head.weight.copy_(8 * solution.T)
        head.bias.zero_()
    model = nn.Sequential(body, head)
    return _classified(model, AdamW(model.parameters(), lr=1e-6), 150)


def _gambled() -> nn.Module:
    """A policy gradient: the loss is noise around zero, and the reward rises."""
    model = nets.Chain(2, 32, sizes=(12, 4))
    optimizer = Adam(model.parameters(), lr=3e-3)

    def loss_of(_step: int) -> Tensor:
        x, _ = data.table(32)
        policy = torch.distributions.Categorical(logits=model(x))
        action = policy.sample()
        reward = (action == x[:, :4].argmax(1)).float()
        loss: Tensor = -(policy.log_prob(action) * (reward - reward.mean())).mean()
        return loss

    return fit(model, optimizer, loss_of, 200)


def _bootstrapped() -> nn.Module:
    """Q-learning: the targets move with the network, and the loss rises before it falls."""
    model = nets.Chain(2, 32, sizes=(12, 4))
    judge = copy.deepcopy(model)
    optimizer = Adam(model.parameters(), lr=1e-3)
    for step in range(300):
        x, _ = data.table(32)
        action = torch.randint(4, (32, 1))
        reward = (action == x[:, :4].argmax(1, keepdim=True)).float()
        with torch.no_grad():
            target = reward + 0.9 * judge(x.roll(1, 0)).amax(1, keepdim=True)
        optimizer.zero_grad()
        F.mse_loss(model(x).gather(1, action), target).backward()
        optimizer.step()
        if step % 20 == 0:
            judge.load_state_dict(model.state_dict())
    return model


class Bag(nn.Module):
    """Averaged embeddings with sparse gradients: most rows have none."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(500, 16, mode="mean", sparse=True)
        self.head = nn.Linear(16, 3)

    def forward(self, words: Tensor) -> Tensor:
        """Return class scores [documents, classes]."""
        scores: Tensor = self.head(self.bag(words))
        return scores


def _sparse() -> nn.Module:
    model = Bag()
    optimizers = [SparseAdam(model.bag.parameters(), lr=1e-2), Adam(model.head.parameters())]
    for _ in range(150):
        words = torch.randint(500, (32, 6))
        for one in optimizers:
            one.zero_grad()
        F.cross_entropy(model(words), words[:, 0] % 3).backward()
        for one in optimizers:
            one.step()
    return model


class Recomputed(nn.Module):
    """A part that is computed again in the backward pass; its inputs want a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(64, 32)
        self.body = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Dropout(0.1))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores [batch, classes]."""
        scores: Tensor = self.head(checkpoint(self.body, self.stem(x), use_reentrant=True))
        return scores


def _of(
    make: Callable[[], nn.Module], step: Callable[[list[nn.Parameter]], Optimizer]
) -> nn.Module:
    model = make()
    return _classified(model, step([p for p in model.parameters() if p.requires_grad]))


def _spiked() -> nn.Module:
    """A batch a hundred times too large, from which the run recovers."""

    def change(step: int, x: Tensor) -> Tensor:
        return 30 * x if step == 60 else x

    model = nets.fill(nets.Chain(3), nets.he)
    return _classified(model, SGD(model.parameters(), lr=0.01, momentum=0.9), 250, change)


def _on_frozen() -> nn.Module:
    """A new head on a trunk that is frozen on purpose."""
    model = nets.fill(nets.Chain(3), nets.he).requires_grad_(False)
    head = model.get_submodule("head").requires_grad_(True)
    return _classified(model, Adam(head.parameters()))


def _by_heart() -> nn.Module:
    """One batch, until its loss is zero."""
    model = nets.Chain(3)
    optimizer = Adam(model.parameters(), lr=1e-2)
    x, y = data.digits(16)
    return fit(model, optimizer, lambda _step: F.cross_entropy(model(x), y), 300)


def _variational() -> nn.Module:
    """The exponential of a log-variance, a sum of two losses, noise inside the model."""
    encoder, decoder = nn.Linear(64, 16), nn.Linear(8, 64)
    model = nn.ModuleList([encoder, decoder])
    optimizer = Adam(model.parameters(), lr=1e-3)

    def loss_of(_step: int) -> Tensor:
        x, _ = data.digits(32)
        mean, logvar = encoder(x).chunk(2, dim=1)
        code = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(1).mean()
        loss: Tensor = F.mse_loss(decoder(code), x, reduction="sum") / len(x) + divergence
        return loss

    return fit(model, optimizer, loss_of, 150)


def _density() -> nn.Module:
    """A likelihood whose negative logarithm goes below zero."""
    model = nets.Chain(2, 32, sizes=(12, 2))
    optimizer = Adam(model.parameters(), lr=3e-3)

    def loss_of(_step: int) -> Tensor:
        x, _ = data.table(64)
        mean, logvar = model(x).unbind(1)
        y = 0.05 * x[:, 0] + 0.01 * torch.randn(64)
        loss: Tensor = F.gaussian_nll_loss(mean, y, logvar.exp())
        return loss

    return fit(model, optimizer, loss_of, 300)


def _remembered() -> nn.Module:
    """A GRU that stands for a while before it finds what it has to remember."""
    model = nets.Recurrent(nn.GRU(4, 32, batch_first=True), 32)
    optimizer = Adam(model.parameters(), lr=3e-3)

    def loss_of(_step: int) -> Tensor:
        x, y = data.sequences(32, 12)
        return F.cross_entropy(model(x), y)

    return fit(model, optimizer, loss_of, 200)


def _closure() -> nn.Module:
    """A closure, evaluated many times in a step."""
    model = nets.Chain(2)
    optimizer = LBFGS(model.parameters(), lr=0.5, max_iter=5)
    x, y = data.digits(256)

    def again() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    for _ in range(20):
        optimizer.step(again)
    return model


def _contrasted() -> nn.Module:
    """Two views of each sample that have to find each other (InfoNCE)."""
    model = nets.Chain(3, sizes=(64, 16))
    optimizer = Adam(model.parameters(), lr=1e-3)

    def loss_of(_step: int) -> Tensor:
        x, _ = data.digits(32)
        one, other = (F.normalize(model(x + 0.3 * torch.randn_like(x)), dim=1) for _ in range(2))
        return F.cross_entropy(one @ other.T / 0.1, torch.arange(32))

    return fit(model, optimizer, loss_of, 100)


def _taught() -> nn.Module:
    """A teacher that is the average of the student, evaluated now and then."""
    student = nets.Chain(3, norm=nn.BatchNorm1d)
    teacher = copy.deepcopy(student).requires_grad_(False)
    optimizer = SGD(student.parameters(), lr=0.05, momentum=0.9)
    for step in range(120):
        x, y = data.digits(32)
        optimizer.zero_grad()
        with torch.no_grad():
            wanted = teacher(x).softmax(1)
        out = student(x)
        (F.cross_entropy(out, y) + 0.1 * F.cross_entropy(out, wanted)).backward()
        optimizer.step()
        with torch.no_grad():
            for old, new in zip(teacher.parameters(), student.parameters(), strict=True):
                old.lerp_(new, 0.05)
            if step % 20 == 0:
                student.eval()
                F.cross_entropy(student(x), y)
                student.train()
    return student


def _stopped() -> nn.Module:
    """Three steps, then the user stops."""
    model = nets.Chain(3)
    return _classified(model, Adam(model.parameters()), 3)


def _never_here() -> nn.Module:
    """A part that no batch has used so far."""
    model = nn.ModuleDict({"used": nets.Chain(3), "spare": nn.Linear(64, 10)})
    optimizer = Adam(model.parameters())

    def loss_of(_step: int) -> Tensor:
        x, y = data.digits(32)
        loss: Tensor = F.cross_entropy(model["used"](x), y)
        return loss

    return fit(model, optimizer, loss_of, 100)


NAMED: list[tuple[str, Train, str]] = [
    ("scaler-warm-up", _calibrated, "the first steps overflow until the loss scale fits"),
    ("accumulation", _accumulated, "gradients are left on purpose, within a step"),
    ("zero-grad-before-backward", _cleared_late, "old gradients are there in the forward pass"),
    ("norm-logged", _logged, "clipping that never clips"),
    ("adversaries", _adversaries, "the losses of opponents stand or rise"),
    ("warm-up", partial(_warmed_up, 30), "hardly anything moves at the start"),
    ("schedule", partial(_warmed_up, 160), "nothing moves at the end"),
    ("noise-floor", _at_the_floor, "the loss stands, since what is left is noise"),
    ("tuned-further", _tuned, "an lr of 1e-6, and a loss that has fallen before"),
    ("policy-gradient", _gambled, "a loss around zero that does not fall"),
    ("moving-targets", _bootstrapped, "targets that grow with the network"),
    ("sparse-embeddings", _sparse, "rows without a gradient, and sparse ones"),
    ("reentrant-checkpoint", partial(_of, Recomputed, adam()), "the forward pass runs twice"),
    (
        "deep-he-relu",
        partial(_of, lambda: nets.fill(nets.Chain(20), nets.he), adam(3e-4)),
        "a quarter of the units are zero in a batch",
    ),
    ("lora", partial(_of, nets.adapted, adam(1e-2)), "A has no gradient in the first step"),
    ("large-lr", partial(_of, lambda: nets.Chain(3), sgd(0.5)), "large steps that learn"),
    ("spike-that-heals", _spiked, "one gradient far above the others, and no harm"),
    ("frozen-trunk", _on_frozen, "most parameters have no gradient, on purpose"),
    ("learned-by-heart", _by_heart, "a loss of zero, and gradients of next to nothing"),
    ("variational", _variational, "exponentials, and a loss that is a sum"),
    ("negative-likelihood", _density, "a loss below zero"),
    ("slow-memory", _remembered, "a loss that stands before it falls"),
    ("lbfgs", _closure, "many evaluations in a step"),
    ("contrast", _contrasted, "labels that are a permutation, a small temperature"),
    ("averaged-teacher", _taught, "a copy without gradients, evaluations in between"),
    ("three-steps", _stopped, "too short to say anything"),
    ("unused-part", _never_here, "parameters without a gradient that nobody misses"),
]

HEALTHY_TRAININGS: tuple[Training, ...] = tuple(
    Training(name, train, why=why) for name, train, why in NAMED
)
