"""Two networks, two optimizers, a gradient penalty; spectral norm changes buffers as it runs."""

import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

torch.manual_seed(0)
generator = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8))
critic = nn.Sequential(spectral_norm(nn.Linear(8, 16)), nn.LeakyReLU(0.2), nn.Linear(16, 1))
g_optimizer = torch.optim.Adam(generator.parameters(), lr=1e-4)
c_optimizer = torch.optim.Adam(critic.parameters(), lr=1e-4)
for _ in range(2):
    real, fake = torch.randn(16, 8), generator(torch.randn(16, 4)).detach()
    mix = torch.lerp(real, fake, torch.rand(16, 1)).requires_grad_()
    (slope,) = torch.autograd.grad(critic(mix).sum(), mix, create_graph=True)
    loss = critic(fake).mean() - critic(real).mean() + 10 * (slope.norm(dim=1) - 1).pow(2).mean()
    c_optimizer.zero_grad()
    loss.backward()
    c_optimizer.step()
