"""No module at all: tensors, in-place writes, an optimizer."""

import torch

torch.manual_seed(0)
w1 = (torch.randn(8, 16) / 8**0.5).requires_grad_()
b1 = torch.zeros(16, requires_grad=True)
w2 = (torch.randn(16, 1) / 4).requires_grad_()
optimizer = torch.optim.Adam([w1, b1, w2], lr=1e-2)
x, y = torch.randn(64, 8), torch.randn(64, 1)
for _ in range(3):
    optimizer.zero_grad()
    hidden = torch.zeros(64, 16)
    hidden[:, :] = torch.tanh(x @ w1 + b1)
    hidden *= 2
    loss = (hidden @ w2 - y).square().mean() + 1e-4 * sum(p.norm() for p in (w1, w2))
    loss.backward()
    optimizer.step()
