"""LBFGS steps with a closure: nothing has been computed when it is asked to step."""

import torch
from torch import nn

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))
x = torch.randn(32, 2)
optimizer = torch.optim.LBFGS(net.parameters(), lr=0.5)


def closure():
    optimizer.zero_grad()
    loss = ((net(x) - x.prod(1, keepdim=True)) ** 2).mean()
    loss.backward()
    return loss


for _ in range(3):
    optimizer.step(closure)
