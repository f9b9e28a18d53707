"""The gain that holds both signal and gradient level, for any activation."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import nn

from steadygrad.core.theory import Gain
from steadygrad.probe.gain import Activation, gain
from steadygrad.remedies._parts import Part, gain_before


def level(found: Gain) -> float:
    """Return g_fwd^w * g_bwd^(1 - w) with w = eta, cut to [0, 1]: a heuristic, chosen by us.

    eta is the share of an error in the second moment that survives a layer. Where it is 1, as for
    ReLU, the signal must be held exactly; where it is small, as for sigmoid, the signal comes to
    rest by itself, and the gain is best spent on the gradient. ReLU 1.414, tanh 1.52, SELU 0.993,
    sigmoid 4.27.
    """
    weight = min(1.0, max(0.0, found.eta))
    return float(found.forward**weight * found.backward ** (1.0 - weight))


def level_gains(parts: Iterable[Part]) -> dict[str, float]:
    """The level gain of each layer by name, as its first call has it."""
    of = remembered(lambda activation: level(gain(activation)))
    gains: dict[str, float] = {}
    for part in parts:
        if part.kind == "layer":
            gains.setdefault(part.name, gain_before(part, of=of))
    return gains


def remembered(of: Callable[[Activation], float]) -> Callable[[Activation], float]:
    """Compute a number of an activation once for all that look alike.

    Those with parameters are alike when these are.
    """
    known: dict[object, float] = {}

    def number(activation: Activation) -> float:
        key = _key(activation)
        if key not in known:
            known[key] = of(activation)
        return known[key]

    return number


def _key(activation: Activation) -> object:
    if not isinstance(activation, nn.Module):
        return repr(activation)
    values = tuple(tuple(one.detach().flatten().tolist()) for one in activation.parameters())
    return type(activation), repr(activation), values
