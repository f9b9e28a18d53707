"""What a model is made of, in the order of one forward pass: layers, activations, norms.

Modules are seen by temporary hooks, activations that are written as functions by a
TorchFunctionMode. What feeds a part is found by walking its input's autograd graph back to the
nearest parts: residual sums, pooling, dropout, and views are looked through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn import functional as F  # noqa: N812 - its customary name
from torch.nn.modules import activation as activations
from torch.overrides import TorchFunctionMode

from steadygrad.probe.gain import Activation, gain
from steadygrad.probe.graph import is_leaf
from steadygrad.probe.tree import Tree, tensors
from steadygrad.remedies._layers import KINDS, NORMS, RECURRENT
from steadygrad.remedies._pass import first_loss
from steadygrad.remedies.remedy import Scene

Function = Callable[..., Any]  # a torch function, whatever it takes
Kind = Literal["layer", "activation", "norm", "other"]

FUNCTIONS: frozenset[Function] = frozenset(
    {
        *(F.relu, torch.relu, Tensor.relu, torch.relu_, Tensor.relu_, F.relu6, F.leaky_relu),
        *(F.elu, F.selu, torch.selu, F.celu, F.gelu, F.silu, F.mish, F.hardswish, F.softplus),
        *(torch.tanh, Tensor.tanh, torch.tanh_, Tensor.tanh_, F.hardtanh, F.softsign),
        *(torch.sigmoid, Tensor.sigmoid, torch.sigmoid_, Tensor.sigmoid_, F.hardsigmoid),
        *(F.rrelu, F.logsigmoid, torch.sin, Tensor.sin),
    }
)
"""Elementwise activations as `__torch_function__` receives them."""

NOT_ELEMENTWISE = (
    nn.GLU,
    nn.Softmax,
    nn.LogSoftmax,
    nn.Softmin,
    nn.Softmax2d,
    nn.MultiheadAttention,
)
MOST = 5000  # nodes of a walk: chosen by us, where a graph is so wide the nearest parts will do


@dataclass(frozen=True, slots=True)
class Call:
    """An activation that is written as a function, with its settings."""

    function: Function
    args: tuple[Any, ...]
    settings: Mapping[str, Any]

    def __call__(self, x: Tensor) -> Tensor:
        """Return f(x)."""
        out: Tensor = self.function(x, *self.args, **self.settings)
        return out


@dataclass(eq=False, slots=True)
class Part:
    """One call of a layer, an activation, a norm, or another module that breaks the chain.

    `before` are the nearest parts whose outputs it takes in. `gate` says that its output is
    multiplied by another signal. `called` are the torch functions that an activation called.
    `shape` is that of the output; where no pass was made it is empty.
    """

    name: str
    kind: Kind
    subject: Activation
    before: list[Part] = field(default_factory=list)
    after: list[Part] = field(default_factory=list)
    gate: bool = False
    called: set[Function] = field(default_factory=set)
    shape: tuple[int, ...] = ()
    output: Tensor | None = None
    entered: Tensor | None = None


def parts_of(scene: Scene) -> list[Part]:
    """The parts in the order of their calls; without a loss, in the order of the modules."""
    if scene.loss is None:
        return _chain(scene.model)
    with seen(scene.model) as spy:
        first_loss(scene)
    return spy.parts


def gain_before(part: Part, *, of: Callable[[Activation], float]) -> float:
    """The gain of the activation that feeds a layer; 1 for a layer fed by anything else.

    Activations that are not elementwise, or not finite everywhere, count as anything else.
    """
    fed = [one for one in part.before if one.kind == "activation"]
    try:
        return of(fed[0].subject) if fed else 1.0
    except ValueError:
        return 1.0


def fed_by(part: Part) -> Iterator[Part]:
    """All parts that take in what a part puts out, directly or through others, nearest first."""
    return _along(part.after, lambda one: one.after)


def feeding(part: Part) -> Iterator[Part]:
    """All parts whose outputs a part takes in, directly or through others, nearest first."""
    return _along(part.before, lambda one: one.before)


def _along(begin: Sequence[Part], onward: Callable[[Part], Sequence[Part]]) -> Iterator[Part]:
    line, known = list(begin), set(begin)
    for one in line:  # which grows
        yield one
        line += [other for other in onward(one) if other not in known]
        known.update(onward(one))


def is_activation(module: nn.Module) -> bool:
    """Whether a module is an elementwise activation: torch's, or a leaf without state that is one.

    The identity and dropout are none.
    """
    if isinstance(module, NOT_ELEMENTWISE) or next(module.children(), None) is not None:
        return False
    if type(module).__module__ == activations.__name__:
        return True
    if type(module).__module__.startswith("torch.nn.modules") or any(True for _ in _state(module)):
        return False
    try:
        found = gain(module)
    except ValueError:
        return False
    return abs(found.nlc - 1.0) > 1e-6  # 1 exactly where f is linear


def _state(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _kind(module: nn.Module) -> Kind | None:
    if isinstance(module, KINDS):
        return "layer"
    if isinstance(module, NORMS) or _looks_like_a_norm(module):
        return "norm"
    if isinstance(module, (*RECURRENT, nn.Embedding, nn.EmbeddingBag, nn.MultiheadAttention)):
        return "other"
    return "activation" if is_activation(module) else None


def _looks_like_a_norm(module: nn.Module) -> bool:
    """Whether a leaf is called a norm, as LlamaRMSNorm and LayerNorm2d are: a heuristic."""
    return type(module).__name__.rstrip("123d").endswith("Norm") and not module._modules


def _kinds(model: nn.Module) -> dict[str, tuple[nn.Module, Kind]]:
    """Parts by name; a leaf is looked at once for all that look alike."""
    known: dict[tuple[type, str], Kind | None] = {}
    found: dict[str, tuple[nn.Module, Kind]] = {}
    for name, module in model.named_modules():
        key = type(module), "" if module._modules else repr(module)
        if module._modules or key not in known:
            known[key] = _kind(module)
        kind = known[key]
        if kind is not None:
            found[name] = (module, kind)
    return found


def _chain(model: nn.Module) -> list[Part]:
    """Take the modules for a chain in the order in which they were registered."""
    parts: list[Part] = []
    for name, (module, kind) in _kinds(model).items():
        part = Part(name, kind, module, parts[-1:])
        for one in part.before:
            one.after.append(part)
        parts.append(part)
    return parts


# --- One pass ------------------------------------------------------------------------------------


class Spy:
    """Notes the parts of one pass. `watch` is called with each part as its output is there.

    What `watch` returns, where it is a tensor, stands in for the output.
    """

    def __init__(self, watch: Callable[[Part], Tensor | None] | None = None) -> None:
        self.parts: list[Part] = []
        self._made: dict[Node, Part] = {}
        self._open: list[Part] = []
        self._watch = watch

    def enter(self, name: str, kind: Kind, module: nn.Module, args: Tree) -> None:
        """Note that a module is called."""
        part = Part(name, kind, module)
        self._feed(part, args)
        self._open.append(part)

    def leave(self, output: Tree) -> Tensor | None:
        """Note what a module has put out."""
        return self._close(self._open.pop(), next(tensors(output), None))

    def call(self, function: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Call an activation that is written as a function."""
        if self._open:
            self._open[-1].called.add(function)
            return function(*args, **kwargs)
        settings = {key: value for key, value in kwargs.items() if key not in ("input", "inplace")}
        part = Part("", "activation", Call(function, args[1:], settings), called={function})
        self._feed(part, (args, kwargs))
        output = function(*args, **kwargs)
        replaced = self._close(part, output)
        return output if replaced is None else replaced

    def _feed(self, part: Part, args: Tree) -> None:
        part.entered = next(tensors(args), None)
        if part.entered is None:
            return
        for one, gated in self._nearest(part.entered).items():
            part.before.append(one)
            one.after.append(part)
            one.gate |= gated

    def _close(self, part: Part, output: Tensor | None) -> Tensor | None:
        self.parts.append(part)
        if output is None:
            return None
        part.shape, part.output = tuple(output.shape), output
        replaced = self._watch(part) if self._watch is not None else None
        part.output = output if replaced is None else replaced
        if part.output.grad_fn is not None:
            self._made[part.output.grad_fn] = part
        return replaced

    def _nearest(self, tensor: Tensor) -> dict[Part, bool]:
        """Parts met on the way back, each with whether another signal multiplies what it gave."""
        found: dict[Part, bool] = {}
        stack = [] if tensor.grad_fn is None else [(tensor.grad_fn, False)]
        passed = {node for node, _ in stack}
        while stack and len(passed) < MOST:
            node, gated = stack.pop()
            part = self._made.get(node)
            if part is not None:
                found[part] = found.get(part, False) or gated
                continue
            data = [one for one, _ in node.next_functions if one is not None and not is_leaf(one)]
            gated = gated or (node.name().startswith("MulBackward") and len(data) > 1)
            stack += [(one, gated) for one in data if one not in passed]
            passed.update(data)
        return found


@contextmanager
def seen(model: nn.Module, watch: Callable[[Part], Tensor | None] | None = None) -> Iterator[Spy]:
    """Note the parts of the passes inside the block; hooks are gone afterwards."""
    spy = Spy(watch)
    handles = []
    for name, (module, kind) in _kinds(model).items():
        handles += [
            module.register_forward_pre_hook(partial(_entered, spy, name, kind), with_kwargs=True),
            module.register_forward_hook(partial(_left, spy)),
        ]
    try:
        with _Functions(spy):
            yield spy
    finally:
        for handle in handles:
            handle.remove()


def _entered(spy: Spy, name: str, kind: Kind, module: nn.Module, args: Tree, kwargs: Tree) -> None:
    spy.enter(name, kind, module, (args, kwargs))


def _left(spy: Spy, _module: nn.Module, _args: Tree, output: Tree) -> Tensor | None:
    return spy.leave(output)


class _Functions(TorchFunctionMode):
    """Shows the spy the activations that are called as functions."""

    def __init__(self, spy: Spy) -> None:
        super().__init__()
        self._spy = spy

    def __torch_function__(
        self,
        func: Function,
        types: Any,  # torch's own signature
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # whatever func returns
        """Run a torch function, an activation under the spy's eyes."""
        if func in FUNCTIONS:
            return self._spy.call(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))
