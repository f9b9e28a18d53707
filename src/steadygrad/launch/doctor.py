"""The command `doctor`: what there is on this machine, and what would be blind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.util import find_spec

import torch
from torch import nn
from torch._dynamo.eval_frame import is_dynamo_supported
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer

from steadygrad.core.environment import version, versions

EXTRAS = {
    "hf": ("transformers", "check hf:NAME, and a callback for its Trainer"),
    "timm": ("timm", "check timm:NAME"),
    "demo": ("scikit-learn", "steadygrad demo"),
    "lab": ("matplotlib", "figures of lab, and its digits"),
    "dask": ("distributed", "cure --dask, lab arena --dask"),
    "parquet": ("pyarrow", "export --to parquet"),
    "lightning": ("pytorch-lightning", "a callback for its Trainer"),
    "wandb": ("wandb", "run --to wandb"),
    "mlflow": ("mlflow-skinny", "run --to mlflow"),
    "trackio": ("trackio", "run --to trackio"),
}
"""What each extra installs, and what that is for."""

FUSED: Mapping[str, Callable[[list[nn.Parameter]], Optimizer]] = {
    "SGD": partial(SGD, lr=0.1, fused=True),
    "Adam": partial(Adam, fused=True),
    "AdamW": partial(AdamW, fused=True),
    "Adagrad": partial(Adagrad, fused=True),
}
"""The optimizers of torch that may have a fused kernel."""


def doctor() -> Iterator[str]:
    """Say, line by line, what was found; nothing is installed and nothing is fetched."""
    yield from _block("versions", versions())
    yield from _block("devices", dict(_devices()))
    yield from _block("mechanisms", dict(_mechanisms()))
    yield from _block("extras", dict(map(_extra, EXTRAS)))
    yield "would be blind"
    blind = [*_blind()]
    yield from (f"  {one}" for one in blind or ["nothing that this machine decides"])


def _block(title: str, rows: dict[str, str]) -> Iterator[str]:
    yield title
    width = max((len(name) for name in rows), default=0)
    yield from (f"  {name:<{width}}  {value}" for name, value in rows.items())
    yield ""


def _devices() -> Iterator[tuple[str, str]]:
    yield "cpu", f"{torch.get_num_threads()} threads"
    for number in range(torch.cuda.device_count()):
        yield f"cuda:{number}", torch.cuda.get_device_name(number)
    if torch.backends.mps.is_available():
        yield "mps", "available"


# --- Mechanisms ----------------------------------------------------------------------------------


def _mechanisms() -> Iterator[tuple[str, str]]:
    """Try each way of clipping and skipping that guards know, on a tiny parameter."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    able = [name for name in FUSED if _skips_along(name, device)]
    yield "fused", f"{', '.join(able) or 'no optimizer'} on {device}"
    yield "foreach", _told(_has_foreach(device))
    yield "DTensor", _told(_has_dtensor())
    yield "compile", _told(_has_compiler())


def _told(there: bool) -> str:
    return "available" if there else "missing"


def _skips_along(name: str, device: str) -> bool:
    """Whether a fused step heeds the flag by which a guard skips it."""
    parameter = nn.Parameter(torch.ones(2, device=device))
    parameter.grad = torch.ones_like(parameter)
    try:
        optimizer = FUSED[name]([parameter])
        vars(optimizer)["found_inf"] = torch.ones((), device=device)
        optimizer.step()
    except (RuntimeError, TypeError):  # no kernel for this device, or none in this torch
        return False
    return bool(torch.equal(parameter.detach(), torch.ones_like(parameter)))


def _has_foreach(device: str) -> bool:
    norms = torch._foreach_norm([torch.ones(4, device=device)])
    return float(norms[0]) == 2.0


def _has_dtensor() -> bool:
    return torch.distributed.is_available() and find_spec("torch.distributed.tensor") is not None


def _has_compiler() -> bool:
    return is_dynamo_supported()


# --- What is not there ---------------------------------------------------------------------------


def _extra(name: str) -> tuple[str, str]:
    """Say whether an extra's package is there, and how to get it."""
    package, use = EXTRAS[name]
    found = version(package)
    if found:
        return name, f"{package} {found}: {use}"
    return name, f"missing: {use} needs it: pip install 'steadygrad[{name}]'"


def _blind() -> Iterator[str]:
    """Say what this machine keeps from being seen in a training on it."""
    if torch.cuda.is_available():
        yield (
            "first causes on a GPU: nothing is replayed there, unless a guard with "
            "skip_nonfinite() holds the weights"
        )
    if _has_compiler():
        yield (
            "parts under torch.compile: their outputs and the first cause in them; run with "
            "TORCH_COMPILE_DISABLE=1 to see both"
        )
    if not _has_dtensor():
        yield "sharded parameters: this torch has no DTensor"
