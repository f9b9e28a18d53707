"""Small data with something to learn in it: handwritten digits, sequences, tokens, a graph."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=1)
def _all_digits() -> tuple[Tensor, Tensor]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as missing:
        raise ImportError(
            "expected scikit-learn for its handwritten digits, got none: pip install scikit-learn"
        ) from missing
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images, dtype=torch.float32), torch.tensor(labels)


def digits(count: int = 64) -> tuple[Tensor, Tensor]:
    """Draw standardized 8 x 8 digits [count, 64] and their labels [count] in 0..9."""
    pixels, labels = raw_digits(count)
    return (pixels - 4.9) / 6.0, labels


def raw_digits(count: int = 64) -> tuple[Tensor, Tensor]:
    """Draw digits with pixels as stored, 0 to 16: [count, 64], and their labels [count]."""
    images, labels = _all_digits()
    chosen = torch.randperm(len(images))[:count]
    return images[chosen].clone(), labels[chosen].clone()


def images(count: int = 32, size: int = 16) -> tuple[Tensor, Tensor]:
    """Draw standardized digits enlarged to [count, 1, size, size], and their labels [count]."""
    pixels, labels = digits(count)
    small = pixels.reshape(-1, 1, 8, 8)
    return torch.nn.functional.interpolate(small, size=(size, size), mode="nearest"), labels


def sequences(count: int = 32, length: int = 50, width: int = 4) -> tuple[Tensor, Tensor]:
    """Draw noise [count, length, width] with a cue in channel 0 of the first step, and its sign."""
    x = torch.randn(count, length, width)
    x[:, 1:, 0] = 0.0
    return x, (x[:, 0, 0] > 0).long()


def waves(count: int = 32, length: int = 50) -> tuple[Tensor, Tensor]:
    """Draw sine waves [count, length, 1] of random pitch and phase, and each step's next value."""
    time = torch.arange(length + 1.0)
    pitch, phase = 0.1 + 0.4 * torch.rand(count, 1), 6.28 * torch.rand(count, 1)
    wave = torch.sin(pitch * time + phase).unsqueeze(-1)
    return wave[:, :-1], wave[:, 1:]


def tokens(count: int = 16, length: int = 24, vocabulary: int = 50) -> tuple[Tensor, Tensor]:
    """Draw counting sequences of tokens [count, length] with some noise, and the next tokens."""
    start, stride = torch.randint(vocabulary, (count, 1)), torch.randint(1, 4, (count, 1))
    clean = (start + stride * torch.arange(length + 1)) % vocabulary
    noisy = torch.where(
        torch.rand(clean.shape) < 0.05, torch.randint_like(clean, vocabulary), clean
    )
    return noisy[:, :-1], noisy[:, 1:]


def table(count: int = 128, columns: int = 12) -> tuple[Tensor, Tensor]:
    """Draw a standardized table [count, columns] and a smooth standardized target [count, 1]."""
    x = torch.randn(count, columns)
    y = torch.sin(x[:, :1]) + x[:, 1:2] * x[:, 2:3] + 0.5 * x[:, 3:4]
    return x, (y - y.mean()) / y.std(correction=0).clamp_min(1e-3)


def graph(nodes: int = 60, width: int = 16, classes: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a community graph: features [nodes, width], D^-1/2 (A + I) D^-1/2, and communities."""
    community = torch.randint(classes, (nodes,))
    same = community[:, None] == community[None, :]
    link = torch.rand(nodes, nodes) < torch.where(same, 0.25, 0.03)
    adjacency = ((link | link.T) | torch.eye(nodes, dtype=torch.bool)).float()
    scale = adjacency.sum(1).rsqrt()
    features = torch.randn(classes, width)[community] + torch.randn(nodes, width)
    return features, scale[:, None] * adjacency * scale[None, :], community
