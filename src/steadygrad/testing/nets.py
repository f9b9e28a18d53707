"""Small networks of every common kind, as users write them, with torch's own initialization."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 as everybody writes it

Activation = Callable[[], nn.Module]
Fill = Callable[[Tensor], object]


def fill(model: nn.Module, weight: Fill, bias: Fill = nn.init.zeros_) -> nn.Module:
    """Initialize all linear and convolution layers of a model in place and return it."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)
    for layer in model.modules():
        if isinstance(layer, kinds):
            weight(layer.weight)
            if layer.bias is not None:
                bias(layer.bias)
    return model


def he(weight: Tensor) -> None:
    """Initialize for ReLU (He 2015, equation 10)."""
    nn.init.kaiming_normal_(weight, nonlinearity="relu")


def lecun(weight: Tensor) -> None:
    """Initialize so that a linear layer keeps the variance (LeCun 1998)."""
    nn.init.kaiming_normal_(weight, nonlinearity="linear")


def normal(std: float) -> Fill:
    """Fill with N(0, std^2)."""
    return lambda weight: nn.init.normal_(weight, std=std)


def orthogonal(gain: float = 1.0) -> Fill:
    """Fill with an orthogonal matrix times gain."""
    return lambda weight: nn.init.orthogonal_(weight, gain)


def scaled(model: nn.Module, name: str, factor: float) -> nn.Module:
    """Multiply one parameter of a model by a factor and return the model."""
    with torch.no_grad():
        model.get_parameter(name).mul_(factor)
    return model


class Chain(nn.Module):
    """Linear layers with an activation between them: `layers`, then `head`."""

    def __init__(
        self,
        depth: int = 30,
        width: int = 64,
        act: Activation = nn.ReLU,
        sizes: tuple[int, int] = (64, 10),
        norm: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number in range(depth - 1):
            layers.append(nn.Linear(sizes[0] if number == 0 else width, width))
            if norm is not None:
                layers.append(norm(width))
            layers.append(act())
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(width if depth > 1 else sizes[0], sizes[1])

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores [batch, classes]."""
        scores: Tensor = self.head(self.layers(x.flatten(1)))
        return scores


class ConvChain(nn.Module):
    """Convolutions with an activation and pooling, as VGG: `features`, then `classifier`."""

    def __init__(
        self,
        widths: Sequence[int | str],
        act: Activation = nn.ReLU,
        channels: int = 1,
        classes: int = 10,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in widths:
            if isinstance(width, str):
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(channels, width, 3, padding=1), act()]
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores [batch, classes]."""
        scores: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return scores


def vgg10() -> nn.Module:
    """Build nine 3 x 3 convolutions and a classifier, initialized after He."""
    return fill(ConvChain((16, 16, "M", 32, 32, "M", 64, 64, 64, "M", 64, 64)), he)


class ConvBlock(nn.Module):
    """The basic residual block of ResNet, with batch norm."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(x + branch)."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class ResNet20(nn.Module):
    """ResNet-20 for small images: a stem, three stages of three blocks, a classifier."""

    def __init__(self, widths: Sequence[int] = (8, 16, 32), channels: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        blocks = []
        before = widths[0]
        for stage, width in enumerate(widths):
            for number in range(3):
                blocks.append(ConvBlock(before, width, 2 if stage and not number else 1))
                before = width
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(before, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores [batch, classes]."""
        h = self.blocks(F.relu(self.norm(self.stem(x))))
        scores: Tensor = self.fc(h.mean((2, 3)))
        return scores


class Branch(nn.Module):
    """One residual block without normalization: x + scale * f(x)."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.lin1 = nn.Linear(width, width)
        self.lin2 = nn.Linear(width, width)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Return x + scale * lin2(relu(lin1(x)))."""
        out: Tensor = x + self.scale * self.lin2(F.relu(self.lin1(x)))
        return out


class Residual(nn.Module):
    """A stem, residual blocks of linear layers without normalization, and a head."""

    def __init__(self, blocks: int = 40, width: int = 64, scale: float = 1.0) -> None:
        super().__init__()
        self.stem = nn.Linear(64, width)
        self.blocks = nn.ModuleList(Branch(width, scale) for _ in range(blocks))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores [batch, classes]."""
        h = self.stem(x)
        for block in self.blocks:
            h = block(h)
        scores: Tensor = self.head(h)
        return scores


class Attention(nn.Module):
    """Self-attention written by hand, with an additive mask where one is given."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mix tokens [batch, tokens, width] by softmax(q k / sqrt(d) + mask)."""
        batch, count, width = x.shape
        parts = self.qkv(x).reshape(batch, count, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) / math.sqrt(width // self.heads)
        if mask is not None:
            scores = scores + mask
        mixed: Tensor = self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return mixed


class Block(nn.Module):
    """A transformer block, with the norms before the branches (pre) or after the sums (post)."""

    def __init__(self, width: int, pre: bool = True, heads: int = 4) -> None:
        super().__init__()
        self.pre = pre
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.act = nn.GELU()
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return tokens [batch, tokens, width]."""
        if self.pre:
            x = x + self.attention(self.norm1(x), mask)
            x = x + self.down(self.act(self.up(self.norm2(x))))
        else:
            x = self.norm1(x + self.attention(x, mask))
            x = self.norm2(x + self.down(self.act(self.up(x))))
        return x


def causal_mask(length: int) -> Tensor:
    """Return an additive mask [length, length] with -inf above the diagonal."""
    return torch.full((length, length), -math.inf).triu(1)


class Transformer(nn.Module):
    """A small causal language model; `tied` shares the embedding with the head."""

    def __init__(
        self, depth: int = 8, width: int = 32, pre: bool = True, tied: bool = False, words: int = 50
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.position = nn.Parameter(0.02 * torch.randn(64, width))
        self.blocks = nn.ModuleList(Block(width, pre) for _ in range(depth))
        self.norm: nn.Module = nn.LayerNorm(width) if pre else nn.Identity()
        self.head = nn.Linear(width, words, bias=False)
        if tied:
            nn.init.normal_(self.embedding.weight, std=width**-0.5)
            self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        """Return scores [batch, words, tokens], the classes second as cross-entropy wants them."""
        h = self.embedding(x) + self.position[: x.shape[1]]
        mask = causal_mask(x.shape[1])
        for block in self.blocks:
            h = block(h, mask)
        scores: Tensor = self.head(self.norm(h))
        return scores.transpose(1, 2)


class Rows(nn.Module):
    """Images read as eight tokens by transformer blocks, with norms before or after the sums."""

    def __init__(self, depth: int, width: int = 64, pre: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Linear(8, width)
        self.position = nn.Parameter(0.02 * torch.randn(8, width))
        self.blocks = nn.ModuleList(Block(width, pre) for _ in range(depth))
        self.norm: nn.Module = nn.LayerNorm(width) if pre else nn.Identity()
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores [batch, classes]."""
        h = self.embedding(x.reshape(-1, 8, 8)) + self.position
        for block in self.blocks:
            h = block(h)
        scores: Tensor = self.head(self.norm(h).mean(1))
        return scores


class DoubleConv(nn.Module):
    """Two 3 x 3 convolutions, each with ReLU."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.act2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return the features."""
        out: Tensor = self.act2(self.conv2(self.act1(self.conv1(x))))
        return out


class UNet(nn.Module):
    """A U-Net of three levels without normalization, initialized after He."""

    def __init__(self, width: int = 8, channels: int = 1, out: int = 1) -> None:
        super().__init__()
        self.down1 = DoubleConv(channels, width)
        self.down2 = DoubleConv(width, 2 * width)
        self.bottom = DoubleConv(2 * width, 4 * width)
        self.up2 = DoubleConv(6 * width, 2 * width)
        self.up1 = DoubleConv(3 * width, width)
        self.out = nn.Conv2d(width, out, 1)
        fill(self, he)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the input's size: [batch, out, height, width]."""
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        c = self.bottom(F.max_pool2d(b, 2))
        b = self.up2(torch.cat([F.interpolate(c, scale_factor=2), b], 1))
        a = self.up1(torch.cat([F.interpolate(b, scale_factor=2), a], 1))
        out: Tensor = self.out(a)
        return out


class Recurrent(nn.Module):
    """A recurrent classifier of the last step: `rnn`, then `head`."""

    def __init__(self, rnn: nn.Module, width: int, classes: int = 2) -> None:
        super().__init__()
        self.rnn = rnn
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores [batch, classes] from [batch, steps, features]."""
        scores: Tensor = self.head(self.rnn(x)[0][:, -1])
        return scores


class Loop(nn.Module):
    """A recurrent cell called in a Python loop, and a head on its last state."""

    def __init__(self, cell: nn.Module, width: int, classes: int = 2) -> None:
        super().__init__()
        self.cell = cell
        self.head = nn.Linear(width, classes)
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores [batch, classes] from [batch, steps, features]."""
        state = x.new_zeros(len(x), self.width)
        for step in range(x.shape[1]):
            state = self.cell(x[:, step], state)
        scores: Tensor = self.head(state)
        return scores


class GraphNet(nn.Module):
    """Graph convolutions relu(A X W) over a normalized adjacency, and a head."""

    def __init__(self, depth: int, width: int = 16, classes: int = 3) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.head = nn.Linear(width, classes)
        fill(self, he)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        """Return scores [nodes, classes]."""
        for conv in self.convs:
            x = F.relu(adjacency @ conv(x))
        scores: Tensor = self.head(x)
        return scores


class Autoencoder(nn.Module):
    """An autoencoder of vectors; `out` squashes the reconstruction."""

    def __init__(self, size: int = 64, code: int = 8, out: Activation = nn.Identity) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(size, 32), nn.ReLU(), nn.Linear(32, code))
        self.decoder = nn.Sequential(nn.Linear(code, 32), nn.ReLU(), nn.Linear(32, size), out())

    def forward(self, x: Tensor) -> Tensor:
        """Return the reconstruction."""
        out: Tensor = self.decoder(self.encoder(x))
        return out


class Adapted(nn.Module):
    """A frozen linear layer with a low-rank update: W x + B A x (LoRA, Hu 2021)."""

    def __init__(self, width: int = 64, rank: int = 4, a_is_zero: bool = False) -> None:
        super().__init__()
        self.base = fill(nn.Linear(width, width), he).requires_grad_(False)
        self.lora_a = nn.Linear(width, rank, bias=False)
        self.lora_b = nn.Linear(rank, width, bias=False)
        nn.init.zeros_(self.lora_b.weight)
        if a_is_zero:
            nn.init.zeros_(self.lora_a.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return base(x) + B A x."""
        out: Tensor = self.base(x) + self.lora_b(self.lora_a(x))
        return out


def adapted(a_is_zero: bool = False) -> nn.Module:
    """Build a frozen network of three layers with a low-rank update each; all else is frozen."""
    layers: list[nn.Module] = []
    for _ in range(3):
        layers += [Adapted(a_is_zero=a_is_zero), nn.ReLU()]
    model = nn.Sequential()
    model.add_module("layers", nn.Sequential(*layers))
    model.add_module("head", nn.Linear(64, 10).requires_grad_(False))
    return model


class OffByOnePercent(torch.autograd.Function):
    """x W^T, whose backward pass is wrong: the weight's gradient is 1 % too large."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """Return x W^T."""
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of x, and, wrongly, of W."""
        x, weight = ctx.saved_tensors
        return gradient @ weight, 1.01 * gradient.T @ x


class WrongLinear(nn.Linear):
    """A linear layer with the wrong backward pass."""

    def forward(self, input: Tensor) -> Tensor:
        """Return input W^T + b."""
        out: Tensor = OffByOnePercent.apply(input, self.weight)  # type: ignore[no-untyped-call]
        return out + self.bias
