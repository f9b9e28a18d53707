"""Wortsman 2023: norms on queries and keys let small Transformers train at any learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its customary name

import steadygrad as sg
from steadygrad.lab.experiment import Curve, Figure, Plan, Result, below, experiment
from steadygrad.lab.nets import digits, last

GRAYS, PIXELS = 17, 64  # what a pixel may be, and pixels of an image
HEADS = 4
RATES = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
FLOOR, DECAY, Z = 1e-5, 1e-4, 1e-4  # last rate, weight decay of any rate, weight of the z-loss
ARMS = {"neither": (False, False), "z-loss": (False, True), "qk-norm": (True, False)}


@experiment(
    "wortsman2023",
    claim="At high learning rates the attention logits of small Transformers grow as those of "
    "large ones do, and training suffers; a norm on queries and keys prevents both",
    published="with qk-layernorm a considerably lower sensitivity to the learning rate (figure 1), "
    "as attention logits no longer grow with it (figure 2)",
    tolerance="an order and no number: the sensitivity at most half, and the largest logit at most "
    "a tenth, an order of magnitude",
    source="Wortsman, Liu, Xiao, Everett, Alemi, Adlam, Co-Reyes, Gur, Kumar, Novak, Pennington, "
    "Sohl-Dickstein, Xu, Lee, Gilmer & Kornblith 2023, Small-scale proxies for large-scale "
    "Transformer training instabilities",
)
def wortsman2023(plan: Plan) -> Result:
    """Train two-layer Transformers on the pixels of digits at five rates, two draws each.

    Sensitivity is the paper's: the mean over rates of min(loss, first loss) less the best rate's
    loss; so are AdamW (0.9, 0.95), clipping to norm 1, warm-up for 5 % of the steps and a cosine to
    1e-5, a weight decay apart from the rate, the initialization, and a norm for each head. Networks
    of 30,000 parameters stand for those of 10 million and more, 17 grays for words, hundreds of
    steps for 100,000. Rates end at 0.3, as the paper's do, and begin at 3e-3 instead of 3e-4, near
    the best at this size: below it all arms are slow alike in so few steps. At a rate of 1, beyond
    the paper's, one draw of three suffered with the norm as well. The other instability of the
    paper, output logits that drift late in a training, which z-loss prevents, does not show here:
    the table has log Z with z-loss and without, held to nothing.
    """
    size = plan.pick(Size(16, 1, 2, 20), Size(32, 2, 8, 150), Size(128, 3, 16, 5000))
    rates = plan.pick(RATES[::4], RATES, RATES)
    seeds = range(plan.seed, plan.seed + plan.pick(1, 2, 3))
    ends: dict[str, list[float]] = {arm: [] for arm in ARMS}
    largest: dict[str, float] = dict.fromkeys(ARMS, 0.0)
    rows: list[list[object]] = []
    for arm, lr in plan.each([(arm, lr) for arm in ARMS for lr in rates]):
        told = [trained(size, arm, lr, seed) for seed in seeds]
        ends[arm].append(fmean(one.end for one in told))
        largest[arm] = max(largest[arm], *(one.largest for one in told))
        log_z = fmean(one.log_z for one in told)
        rows.append([arm, lr, ends[arm][-1], max(one.largest for one in told), log_z])
    spread = {arm: sensitivity(found) for arm, found in ends.items()}
    measures = [
        below("sensitivity with qk-norm over without", spread["qk-norm"] / spread["neither"], 0.5),
        below(
            "largest logit with qk-norm over without", largest["qk-norm"] / largest["neither"], 0.1
        ),
    ]
    rows += [
        [arm, "all", f"sensitivity {value:.4f}", largest[arm], ""] for arm, value in spread.items()
    ]
    curves = [Curve(arm, rates, found) for arm, found in ends.items()]
    header = ("arm", "lr", "loss at the end", "largest logit", "|log Z| at the end")
    return Result(measures, header, rows, Figure("learning rate", "loss at the end", curves, "x"))


def sensitivity(ends: Sequence[float]) -> float:
    """Return the mean over rates of the loss, less the best (section 2.2)."""
    return fmean(ends) - min(ends)


@dataclass(frozen=True, slots=True)
class Size:
    """Of a network and its training."""

    width: int
    layers: int
    batch: int
    steps: int


class Layer(nn.Module):
    """A pre-LN layer without biases; `largest` is the largest attention logit of the last pass."""

    def __init__(self, width: int, normed: bool) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width, bias=False) for _ in range(2))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)
        head = width // HEADS
        norm = (lambda: nn.LayerNorm(head, bias=False)) if normed else nn.Identity
        self.query_norm, self.key_norm = norm(), norm()
        self.largest = 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Attend to what came before, then feed forward; [batch, tokens, width]."""
        x = x + self._attend(self.norms[0](x))
        out: Tensor = x + self.down(F.gelu(self.up(self.norms[1](x))))
        return out

    def _attend(self, x: Tensor) -> Tensor:
        q, k, v = (
            one.unflatten(-1, (HEADS, -1)).transpose(1, 2) for one in self.qkv(x).chunk(3, dim=-1)
        )
        scores = self.query_norm(q) @ self.key_norm(k).mT / math.sqrt(q.shape[-1])
        self.largest = float(scores.detach().abs().max())
        future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        seen = scores.masked_fill(future, -math.inf).softmax(dim=-1) @ v
        out: Tensor = self.out(seen.transpose(1, 2).flatten(2))
        return out


class Model(nn.Module):
    """Predicts each pixel of an image from those before it."""

    def __init__(self, size: Size, normed: bool) -> None:
        super().__init__()
        self.pixels = nn.Embedding(GRAYS, size.width)
        self.places = nn.Embedding(PIXELS, size.width)
        self.attending = [Layer(size.width, normed) for _ in range(size.layers)]
        self.layers = nn.Sequential(*self.attending)
        self.norm = nn.LayerNorm(size.width, bias=False)
        self.head = nn.Linear(size.width, GRAYS, bias=False)
        for one in self.modules():
            if isinstance(one, nn.Linear | nn.Embedding):
                std = one.weight.shape[1] ** -0.5
                nn.init.trunc_normal_(one.weight, std=std, a=-2 * std, b=2 * std)

    def forward(self, grays: Tensor) -> Tensor:
        """Return scores [batch, tokens, grays]."""
        x = self.pixels(grays) + self.places(torch.arange(grays.shape[1]))
        scores: Tensor = self.head(self.norm(self.layers(x)))
        return scores


def images() -> Tensor:
    """Return the digits as grays 0 to 16, [images, pixels]."""
    pixels = digits()[0]
    grays = pixels - pixels.min()
    return (grays / grays.max() * (GRAYS - 1)).round().long()


@dataclass(frozen=True, slots=True)
class Told:
    """What a training shows: losses [steps], the largest attention logit, and the last |log Z|."""

    losses: Sequence[float]
    largest: float
    log_z: float

    @property
    def end(self) -> float:
        """The mean of the last tenth of the losses; the first where that is higher, or broke."""
        end = last(self.losses, max(1, len(self.losses) // 10))
        return min(end, self.losses[0]) if math.isfinite(end) else self.losses[0]


def trained(size: Size, arm: str, lr: float, seed: int) -> Told:
    """Train a model; the loss that is told is without z-loss."""
    normed, with_z = ARMS[arm]
    torch.manual_seed(seed)
    model, grays = Model(size, normed), images()
    optimizer = torch.optim.AdamW(model.parameters(), lr, (0.9, 0.95), weight_decay=0.0)
    sg.guard(optimizer, sg.clip_norm(1.0))
    generator = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    largest = log_z = 0.0
    for step in range(size.steps):
        chosen = grays[torch.randint(len(grays), (size.batch,), generator=generator)]
        scores = model(chosen[:, :-1])
        loss = F.cross_entropy(scores.flatten(0, 1), chosen[:, 1:].flatten())
        z = scores.logsumexp(dim=-1)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            break
        largest = max(largest, *(layer.largest for layer in model.attending))
        log_z = float(z.detach().abs().mean())
        rate = scheduled(lr, step, size.steps)
        for group in optimizer.param_groups:
            group.update(lr=rate, weight_decay=DECAY / lr)  # torch multiplies it by the rate
        optimizer.zero_grad()
        (loss + Z * z.square().mean() if with_z else loss).backward()
        optimizer.step()
    return Told(losses, largest, log_z)


def scheduled(lr: float, step: int, steps: int) -> float:
    """Return the rate of a step: linear for a twentieth of the steps, then a cosine to the last."""
    warm = steps // 20
    if step < warm:
        return lr * (step + 1) / warm
    share = (step - warm) / (steps - warm)
    return FLOOR + (lr - FLOOR) * (1 + math.cos(math.pi * share)) / 2
