"""Wrappers around a model that its user does not mean."""

from __future__ import annotations

from torch import nn


def unwrapped(model: nn.Module) -> nn.Module:
    """Look through torch.compile, DataParallel, and DistributedDataParallel."""
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        inner = (
            vars(model).get("_modules", {}).get("_orig_mod")
        )  # asks no __getattr__ of the user's
        if isinstance(model, parallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner
