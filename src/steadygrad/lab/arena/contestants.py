"""What a name stands for: a table a kind, and functions of the user's own files beside them."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from steadygrad.core.nearest import meant
from steadygrad.lab.arena.nets import Block, Make, Net, Norm, Residual, Rezero, plain, stacked
from steadygrad.lab.arena.nets import transformer as transformer_net
from steadygrad.remedies.applied import BY_NAME

Loss = Callable[[nn.Module], Tensor]
Init = Callable[[nn.Module, Loss], object]  # changes weights in place; the loss of the first batch
Optimize = Callable[[nn.Module, float], Optimizer | Sequence[Optimizer]]
Build = Callable[[int, int, Make, Norm], nn.Module]

DEFAULT, NONE = "default", "none"  # as the model is drawn, or made, by itself

INITS: Mapping[str, str] = {
    DEFAULT: "",
    "he": "kaiming-init",
    "xavier": "xavier-init",
    "orthogonal": "orthogonal-init",
    "level": "level-init",
    "edge-of-chaos": "critical-init",
    "lsuv": "lsuv",
    "jacobian": "jacobian-init",
    "zero-branches": "zero-branches",
    "depth-scaled": "depth-scaled-residual",
    "deep-norm": "deep-norm",
}
"""Initialisations, and the remedies that they are."""

ACTIVATIONS: Mapping[str, Make] = {
    "relu": nn.ReLU,
    "leaky-relu": nn.LeakyReLU,
    "prelu": nn.PReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "hardswish": nn.Hardswish,
    "tanh": nn.Tanh,
    "hardtanh": nn.Hardtanh,
    "softsign": nn.Softsign,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "linear": nn.Identity,
}

NORMS: Mapping[str, Norm] = {
    NONE: lambda _: nn.Identity(),
    "batch": nn.BatchNorm1d,
    "layer": nn.LayerNorm,
    "rms": nn.RMSNorm,
}

BLOCKS: Mapping[str, Block] = {"plain": plain, "residual": Residual, "rezero": Rezero}
TRANSFORMERS: Mapping[str, bool] = {"pre-ln": True, "post-ln": False}
ARCHITECTURES = (*BLOCKS, *TRANSFORMERS)

MOMENTUM = 0.9
SGD_RATES, ADAM_RATES = (1e-3, 1e-2, 1e-1), (1e-4, 1e-3, 1e-2)


def sgd(model: nn.Module, lr: float) -> Optimizer:
    """Make SGD with momentum 0.9."""
    return torch.optim.SGD(model.parameters(), lr, momentum=MOMENTUM, fused=True)


def rmsprop(model: nn.Module, lr: float) -> Optimizer:
    """Make RMSprop with torch's own settings."""
    return torch.optim.RMSprop(model.parameters(), lr)


def adam(model: nn.Module, lr: float) -> Optimizer:
    """Make Adam with torch's own settings, which are the paper's."""
    return torch.optim.Adam(model.parameters(), lr, fused=True)


def muon(model: nn.Module, lr: float) -> list[Optimizer]:
    """Make Muon for matrices of hidden layers and AdamW for all else, at one learning rate.

    Muon's steps are scaled to the RMS of AdamW's (Liu 2025, arXiv 2502.16982, section 2.2), so that
    one rate is right for both. As in Jordan 2024, the first and the last layer are AdamW's. Nothing
    decays, as with the other optimizers here.
    """
    made: Any = getattr(torch.optim, "Muon", None)  # torch 2.9 and later
    if made is None:
        raise ValueError(f"expected torch 2.9 or later for muon, got {torch.__version__}")
    matrices = [one for one in model.parameters() if one.requires_grad and one.ndim == 2]
    hidden = matrices[1:-1]
    chosen = {id(one) for one in hidden}
    others = [one for one in model.parameters() if id(one) not in chosen]
    found: list[Optimizer] = []
    if others:
        found.append(torch.optim.AdamW(others, lr, weight_decay=0.0, fused=True))
    if hidden:
        found.append(made(hidden, lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"))
    return found


OPTIMIZERS: Mapping[str, tuple[Optimize, Sequence[float]]] = {
    "sgd": (sgd, SGD_RATES),
    "rmsprop": (rmsprop, ADAM_RATES),
    "adam": (adam, ADAM_RATES),
    "muon": (muon, ADAM_RATES),
}
"""Each with three learning rates, a decade apart, that its search begins with."""

SWAPS = (DEFAULT, *(one.name for one in BY_NAME.values() if one.kind == "activation"))
"""Activations that can be put into a model of the user's own: the remedies that do so."""

KINDS: Mapping[str, Sequence[str]] = {
    "init": tuple(INITS),
    "activation": tuple(ACTIVATIONS),
    "norm": tuple(NORMS),
    "optimizer": tuple(OPTIMIZERS),
    "architecture": ARCHITECTURES,
}


# --- Names ----------------------------------------------------------------------------------------


def expect(kind: str, name: str, known: Sequence[str] = ()) -> None:
    """Raise ValueError where a name stands for nothing, with the nearest that does."""
    if is_file(name):
        load(name)
        return
    names = known or KINDS[kind]
    if name not in names:
        advice = meant(name, names, otherwise=f"known are {', '.join(names)}")
        raise ValueError(f"expected {_article(kind)}, or FILE.py:FUNCTION, got {name}{advice}")


def _article(kind: str) -> str:
    return f"{'an' if kind[0] in 'aio' else 'a'} {kind}"


def is_file(name: str) -> bool:
    """Whether a name is FILE.py:FUNCTION."""
    return name.rpartition(":")[0].endswith(".py")


@cache
def load(target: str) -> Callable[..., Any]:
    """Return the function of FILE.py:FUNCTION; raise ValueError where there is none.

    What the file itself raises is raised on.
    """
    place, _, attribute = target.rpartition(":")
    path = Path(place)
    if not path.is_file():
        raise ValueError(f"expected a file for {target}, {place} does not exist")
    name = f"steadygrad_arena_{path.stem}"  # which hides no module that others import
    specification = importlib.util.spec_from_file_location(name, path)
    if specification is None or specification.loader is None:
        raise ValueError(f"expected a Python file, got {place}")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    sys.path.append(str(path.resolve().parent))
    specification.loader.exec_module(module)
    found: Callable[..., Any] | None = vars(module).get(attribute)
    if not callable(found):
        advice = meant(attribute, vars(module))
        raise ValueError(f"expected {place} to define a function {attribute}, it does not{advice}")
    return found


def fingerprint(names: Sequence[str]) -> str:
    """Return what changes when one of the files among names does; empty without files."""
    places = sorted({name.rpartition(":")[0] for name in names if is_file(name)})
    read = [Path(place).read_bytes() for place in places]
    return hashlib.sha256(b"\0".join(read)).hexdigest()[:12] if read else ""


# --- What they stand for --------------------------------------------------------------------------


def remedies_of_init(name: str) -> list[str]:
    """Return the remedy that an initialisation is; none for the default."""
    return [INITS[name]] if INITS[name] else []


def activation_of(name: str) -> Make:
    """Return what makes an activation; a user's function of a tensor is made a module."""
    if not is_file(name):
        return ACTIVATIONS[name]
    found = load(name)
    return found if isinstance(found, type) else lambda: Elementwise(found)


class Elementwise(nn.Module):
    """An activation of a user's function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Return f(x)."""
        return self.function(x)

    def extra_repr(self) -> str:
        """Name the function."""
        return str(getattr(self.function, "__name__", "function"))


def norm_of(name: str) -> Norm:
    """Return what makes a norm of a width."""
    return load(name) if is_file(name) else NORMS[name]


def architecture_of(name: str) -> Build:
    """Return what makes a network of a depth, a width, an activation, and a norm."""
    if name not in TRANSFORMERS:
        return partial(stacked, load(name) if is_file(name) else BLOCKS[name])

    def build(depth: int, width: int, activation: Make, _: Norm) -> Net:
        return transformer_net(TRANSFORMERS[name], depth, width, activation)

    return build


def optimizers_of(name: str, model: nn.Module, lr: float) -> list[Optimizer]:
    """Return the optimizers of a model."""
    make: Optimize = load(name) if is_file(name) else OPTIMIZERS[name][0]
    found = make(model, lr)
    return [found] if isinstance(found, Optimizer) else list(found)


def rates_of(name: str) -> Sequence[float]:
    """Return the learning rates that a search begins with; a user's optimizer has Adam's."""
    return ADAM_RATES if is_file(name) else OPTIMIZERS[name][1]


def remedies_of_model(activation: str, norm: str) -> list[str]:
    """Return the remedies that change a user's own model."""
    found = [] if activation == DEFAULT else [activation]
    return found if norm == NONE else [*found, f"{norm}-norm"]
