"""A custom autograd function outside of all modules, and a penalty on a parameter."""

import torch
from torch import nn


class Clamp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clamp(-1, 1)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
loss = Clamp.apply(model(torch.randn(8, 4))).pow(2).mean()
loss = loss + 1e-3 * sum(p.abs().sum() for p in model.parameters())
loss.backward()
optimizer.step()
