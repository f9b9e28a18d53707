"""Trains in a thread of its own."""

import threading

import torch
from torch import nn


def train():
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(4, 4)).sum().backward()
    optimizer.step()


worker = threading.Thread(target=train, name="trainer")
worker.start()
worker.join()
