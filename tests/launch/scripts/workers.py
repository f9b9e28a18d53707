"""Loads with worker processes, starts one with spawn, prints bytes, compiles its model."""

import multiprocessing
import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def child(queue):
    net = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before = net.weight.detach().clone()
    net(torch.ones(4, 2)).sum().backward()
    optimizer.step()
    queue.put(bool((net.weight != before).any()))


if __name__ == "__main__":
    sys.stdout.buffer.write(b"\xff\x00\xfe\n")
    context = multiprocessing.get_context(sys.argv[1])
    queue = context.Queue()
    worker = context.Process(target=child, args=(queue,))
    worker.start()
    print("the child trained:", queue.get())  # noqa: T201 - a script prints
    worker.join()
    model = torch.compile(nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    data = TensorDataset(torch.randn(64, 4), torch.randint(0, 2, (64,)))
    for x, y in DataLoader(data, batch_size=16, num_workers=2, shuffle=True):
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
