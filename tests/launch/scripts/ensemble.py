"""Four networks as one: their stacked parameters go through vmap and functional_call."""

import copy

import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

torch.manual_seed(0)
members = [nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1)) for _ in range(4)]
stacked, _ = stack_module_state(members)
base = copy.deepcopy(members[0]).to("meta")


def predict(parameters, x):
    return functional_call(base, (parameters, {}), (x,))


optimizer = torch.optim.Adam(list(stacked.values()), 5e-3)
x = torch.randn(32, 5)
loss = (vmap(predict, (0, None))(stacked, x) - x.sum(-1, keepdim=True)).square().mean()
loss.backward()
optimizer.step()
