"""Two backward passes before one step: each reaches a head of its own."""

import torch
from torch import nn

torch.manual_seed(0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Linear(4, 8)
        self.left = nn.Linear(8, 1)
        self.right = nn.Linear(8, 1)

    def forward(self, x):
        h = self.trunk(x).relu()
        return self.left(h), self.right(h)


net = Net()
optimizer = torch.optim.Adam(net.parameters())
left, right = net.forward(torch.randn(8, 4))
left.mean().backward(retain_graph=True)
torch.autograd.backward([right], [torch.full((8, 1), 0.25)])
optimizer.step()
