"""Catches everything, for ever, and saves what it has at the end."""

import sys

import torch
from torch import nn

model = nn.Linear(4, 1)
before = model.weight.detach().clone()
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
try:
    while True:
        try:
            model(torch.randn(8, 4)).pow(2).mean().backward()
            optimizer.step()
        except BaseException:
            assert model.weight.tolist() == before.tolist()
finally:
    torch.save(model.state_dict(), sys.argv[1])
