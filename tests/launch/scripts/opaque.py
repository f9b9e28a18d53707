"""The signal passes through a plain object between two networks: it cannot be followed."""

import torch
from torch import nn


class Box:
    def __init__(self, signal):
        self.signal = signal


class Second(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 1)

    def forward(self, box):
        return self.layer(box.signal)


first, second = nn.Linear(4, 8), Second()
optimizer = torch.optim.SGD([*first.parameters(), *second.parameters()], lr=0.1)
second(Box(first(torch.randn(4, 4)))).mean().backward()
optimizer.step()
