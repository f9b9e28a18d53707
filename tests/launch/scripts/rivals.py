"""Two networks in one module, an optimizer each; the step of one passes through the other."""

import torch
from torch import nn


class Rivals(nn.Module):
    def __init__(self):
        super().__init__()
        self.maker = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8))
        self.judge = nn.Sequential(nn.Linear(8, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
        self.idle = nn.Linear(2, 2)


rivals, bce = Rivals(), nn.BCEWithLogitsLoss()
first = torch.optim.Adam(rivals.maker.parameters(), lr=2e-4)
second = torch.optim.Adam([*rivals.judge.parameters(), *rivals.idle.parameters()], lr=2e-4)
bce(rivals.judge(rivals.maker(torch.randn(32, 4))), torch.ones(32, 1)).backward()
first.step()
second.step()
