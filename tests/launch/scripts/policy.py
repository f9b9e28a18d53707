"""A policy gradient step: methods other than forward, a distribution as output, constants."""

import torch
from torch import nn
from torch.distributions import Categorical


class Agent(nn.Module):
    def __init__(self):
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))
        self.critic = nn.Linear(4, 1)

    def act(self, x):
        return Categorical(logits=self.actor(x)), self.critic(x)


class Trainer:
    def __init__(self):
        self.agent = Agent()
        self.optimizer = torch.optim.Adam(self.agent.parameters(), lr=1e-3)

    def update(self):
        x = torch.randn(32, 4)
        with torch.no_grad():
            policy, _ = self.agent.act(x)
            action = policy.sample()
            old = policy.log_prob(action)
        policy, value = self.agent.act(x)
        gain = torch.randn(32)
        ratio = (policy.log_prob(action) - old).exp()
        loss = -(ratio * gain).mean() + (value.squeeze(1) - gain).pow(2).mean()
        loss = loss - 0.01 * policy.entropy().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


Trainer().update()
