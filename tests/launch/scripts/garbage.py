"""One parameter is made of torch.empty and never filled; the others are, in many ways."""

import torch
from torch import nn


class Layer(nn.Module):
    def __init__(self, filled):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(8, 8))
        self.bias = nn.Parameter(torch.empty(8))
        self.scale = nn.Parameter(torch.empty(8).fill_(1.0))
        nn.init.kaiming_uniform_(self.weight)
        if filled:
            self.bias.data.zero_()

    def forward(self, x):
        return self.scale * nn.functional.linear(x, self.weight, self.bias)


draft = torch.empty(4, 4)
draft.data.normal_()
model = nn.Sequential(Layer(True), nn.Linear(8, 8), Layer(False))
model.draft = nn.Parameter(draft)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model(torch.randn(4, 8)).sum().backward()
optimizer.step()
