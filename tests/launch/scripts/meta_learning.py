"""An inner step by hand with swapped parameters: cannot be computed again call by call."""

import torch
from torch import nn
from torch.func import functional_call

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
x, y = torch.randn(10, 1), torch.randn(10, 1)
slow = dict(model.named_parameters())
inner = (functional_call(model, slow, (x,)) - y).pow(2).mean()
slopes = torch.autograd.grad(inner, list(slow.values()), create_graph=True)
fast = {name: p - 0.1 * s for (name, p), s in zip(slow.items(), slopes, strict=True)}
(functional_call(model, fast, (x,)) - y).pow(2).mean().backward()
optimizer.step()
