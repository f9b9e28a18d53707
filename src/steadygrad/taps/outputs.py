"""What modules and activations put out in a sampled step, and the gradients that come back.

Modules are shown by the recorder; activations that are written as functions, and attention, are
seen by a TorchFunctionMode that stands only while an outermost module runs. Nothing is stored on a
module, and no number is waited for. The first call of a step stands for all.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its customary name
from torch.overrides import TorchFunctionMode

from steadygrad.core.record import Site
from steadygrad.guards.norms import local
from steadygrad.probe.tree import Tree, is_signal, tensors
from steadygrad.taps.catalogue import Catalogue, Names
from steadygrad.taps.constant import LossCall, loss_call

MOST = 512  # sites: chosen by us, the first of a larger model stand for the rest
REMEMBERED = 4  # samples in none of which a dead unit was positive
SHOWN = 1 << 14  # elements from which the share of saturated ones is read
ROWS = 32  # queries whose attention logits are computed
CUTTING = ("ReLU", "ReLU6", "relu", "relu_", "relu6")
FLAT: Mapping[str, tuple[float, float]] = {
    "Tanh": (-0.97, 0.97),
    "tanh": (-0.97, 0.97),
    "Sigmoid": (0.03, 0.97),
    "sigmoid": (0.03, 0.97),
}
"""Where an activation counts as saturated: its slope is below 6 % and 12 % of the largest."""

ACTIVATIONS: Mapping[Callable[..., Any], str] = {
    function: name
    for name, functions in {
        "relu": (F.relu, torch.relu, Tensor.relu),
        "relu_": (torch.relu_, Tensor.relu_),
        "tanh": (torch.tanh, Tensor.tanh, F.tanh),
        "sigmoid": (torch.sigmoid, Tensor.sigmoid, F.sigmoid),
    }.items()
    for function in functions
}
SOFTMAX = (torch.softmax, Tensor.softmax, F.softmax)
CONVOLVED = ("Conv1d", "ConvTranspose1d", "BatchNorm1d")


@dataclass(slots=True)
class Seen:
    """The readings of one output in one step: 0-d tensors by metric."""

    place: int
    read: dict[str, Tensor]


class Outputs:
    """A tap on module calls. `take` hands out what was read since the last time."""

    def __init__(self, catalogue: Catalogue, names: Names) -> None:
        self._catalogue, self._names = catalogue, names
        self._seen: dict[str, Seen] = {}
        self._alive: dict[str, deque[Tensor]] = {}
        self._previous = ""  # the leaf module that ran last
        self._convolved = False  # whether its channels stand before its positions
        self._inside: list[nn.Module] = []  # that run, the innermost last
        self.losses: list[LossCall] = []
        self._mode = Functions(self)
        self.spent = 0.0  # seconds
        self.fault: Exception | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Watch functions while an outermost call runs."""
        self._inside = []
        with self._mode:
            yield

    def carefully(self, look: Callable[..., None], *given: Any) -> None:
        """Look at something of the user's; a fault of ours ends all looking."""
        if self.fault is not None:
            return
        begin = time.perf_counter()
        try:
            with torch.no_grad():
                look(*given)
        except Exception as error:  # whatever a user's tensors raise
            self.fault = error
        finally:
            self.spent += time.perf_counter() - begin

    def entered(self, module: nn.Module) -> None:
        """Note which module runs."""
        self._inside.append(module)

    def seen(self, module: nn.Module, output: Tree) -> None:
        """Look at what a leaf module has put out; at nothing that is computed a second time."""
        if self._inside:
            self._inside.pop()
        self.carefully(self._seen_module, module, output)

    def _seen_module(self, module: nn.Module, output: Tree) -> None:
        if module._modules or torch._C._current_graph_task_id() != -1:
            return
        name = self._names.modules.get(id(module))
        if name is None:
            return
        kind = type(module).__name__
        self._look(name, kind, next(tensors(output), None))
        self._previous = name
        self._convolved = kind in CONVOLVED

    def activated(self, kind: str, output: Tensor) -> None:
        """Look at what an activation has put out that is no module, nor a part of one."""
        inside = self._inside[-1] if self._inside else None
        if inside is not None and not inside._modules and not inside._parameters:
            return
        name = f"{self._previous}.{kind}" if self._previous else kind
        self._look(name, kind, output)

    def attended(self, logit: Tensor) -> None:
        """Note the largest logit of an attention."""
        name = f"{self._previous}.attention" if self._previous else "attention"
        if name not in self._seen and len(self._seen) < MOST:
            place = self._catalogue.place(Site(name, "output", len(self._seen), "attention"))
            self._seen[name] = Seen(place, {"logit": logit})

    def take(self) -> dict[str, list[tuple[int, Tensor]]]:
        """What was read, by metric: places and 0-d tensors; forgets it."""
        found: dict[str, list[tuple[int, Tensor]]] = {}
        for one in self._seen.values():
            for metric, value in one.read.items():
                found.setdefault(metric, []).append((one.place, value))
        self._seen, self._previous = {}, ""
        return found

    def _look(self, name: str, kind: str, output: Tensor | None) -> None:
        if output is None or name in self._seen or len(self._seen) >= MOST:
            return
        if not is_signal(output) or output.numel() == 0:
            return
        with torch._C.DisableTorchFunction():
            site = Site(name, "output", len(self._seen), kind, 0, tuple(output.shape[1:]))
            mine = local(output.detach())
            seen = Seen(self._catalogue.place(site), _statistics(mine))
            if kind in CUTTING:
                seen.read["dead"] = self._dead(name, mine)
            if kind in FLAT:
                seen.read["saturated"] = _saturated(mine, *FLAT[kind])
            self._seen[name] = seen
            if output.requires_grad:
                output.register_hook(_reader(seen, math.sqrt(mine.numel())))

    def _dead(self, name: str, output: Tensor) -> Tensor:
        """Share of units that were positive in none of the last samples."""
        unit = 1 if output.dim() > 3 or (output.dim() == 3 and self._convolved) else -1
        others = [axis for axis in range(output.dim()) if axis != unit % output.dim()]
        alive = (output.amax(dim=others) if others else output) > 0
        past = self._alive.setdefault(name, deque(maxlen=REMEMBERED))
        if past and past[0].shape != alive.shape:
            past.clear()
        past.append(alive)
        return 1 - torch.stack(list(past)).any(0).double().mean()


@dataclass(eq=False)
class Functions(TorchFunctionMode):
    """Show activations and attention that are written as functions."""

    outputs: Outputs = field(repr=False)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,  # torch's own signature
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # whatever func returns
        """Run a torch function and show what it did."""
        out = func(*args, **(kwargs or {}))
        if torch._C._current_graph_task_id() == -1:  # nothing is computed a second time
            self.outputs.carefully(self._show, func, args, kwargs or {}, out)
        return out

    def _show(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Tree
    ) -> None:
        kind = ACTIVATIONS.get(func)
        if func is F.cross_entropy:
            call = loss_call(args, kwargs)
            self.outputs.losses += [] if call is None else [call]
        elif kind is not None and isinstance(out, Tensor):
            self.outputs.activated(kind, out)
        elif getattr(func, "__name__", "") == "scaled_dot_product_attention":
            query, key = (*args, kwargs.get("query"), kwargs.get("key"))[:2]
            if query.shape[:-2] == key.shape[:-2]:
                self.outputs.attended(_largest_logit(query, key, kwargs.get("scale")))
        elif func in SOFTMAX and args and isinstance(args[0], Tensor) and args[0].dim() >= 3:
            self.outputs.attended(args[0].detach().amax())


def _statistics(output: Tensor) -> dict[str, Tensor]:
    size = output.numel()
    low, high = torch.aminmax(output)
    return {
        "rms": torch.linalg.vector_norm(output, dtype=_wide(output)) / math.sqrt(size),
        "mean": output.sum(dtype=_wide(output)) / size,
        "min": low,
        "max": high,
    }


def _wide(tensor: Tensor) -> torch.dtype | None:
    return torch.float32 if tensor.dtype in (torch.float16, torch.bfloat16) else None


def _saturated(output: Tensor, low: float, high: float) -> Tensor:
    some = output.reshape(-1)[:: max(1, output.numel() // SHOWN)]
    return ((some < low) | (some > high)).double().mean()


def _reader(seen: Seen, root: float) -> Callable[[Tensor], None]:
    def read(gradient: Tensor) -> None:
        mine = local(gradient.detach())
        norm = torch.linalg.vector_norm(mine, dtype=_wide(mine))
        seen.read["grad_rms"] = norm / root

    return read


def _largest_logit(query: Tensor, key: Tensor, scale: float | None) -> Tensor:
    """The largest q k / sqrt(d) over some queries and all keys; masks are not looked at."""
    with torch.no_grad(), torch._C.DisableTorchFunction():
        query, key = query.detach(), key.detach()
        step = max(1, query.shape[-2] // ROWS)
        times = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
        return (query[..., ::step, :] @ key.transpose(-2, -1)).amax() * times
