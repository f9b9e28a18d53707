"""Gradient accumulation, autocast, a loss scaler, an evaluation before training, two roots."""

import torch
from torch import nn


def main():
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Dropout(0.2))
    head = nn.Linear(16, 3)
    temperature = nn.Parameter(torch.ones(()))
    parameters = [*encoder.parameters(), *head.parameters(), temperature]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for _ in range(3):  # forgets no_grad
        encoder(torch.randn(4, 8))
    for step in range(8):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            noise = 0.1 * torch.randn(16, 8)
            code = encoder(torch.randn(16, 8) + noise)
            logits = head(code + 0.1 * torch.randn_like(code)) / temperature
        loss = nn.functional.cross_entropy(logits.float(), torch.randint(0, 3, (16,))) / 4
        scaler.scale(loss).backward()
        if step % 4 == 3:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(parameters, 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()


if __name__ == "__main__":
    main()
