"""Follow parameters past the ops at which their gradient ends, to see whether they still count.

Every tensor that depends on a parameter through such a *cut* (detach, no_grad, argmax, numpy)
carries the parameter in a bit mask. What stands in the mask of the loss influences the loss and is
yet not trained by it; what does not is simply unused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils.weak import WeakIdKeyDictionary

from steadygrad.probe.trace import users_line
from steadygrad.probe.tree import Tree, tensors

FLAT = ("round", "floor", "ceil", "trunc", "fix", "sign", "sgn", "heaviside")  # their slope is zero
LEAVING = ("numpy", "__array__", "tolist")  # after these torch cannot follow


@dataclass(frozen=True, slots=True)
class Cut:
    """An op with a gradient going in and none coming out.

    `call` is the module call it ran in ("" for the root), None outside of the model; `behind` the
    mask of the parameters whose gradient ends here first.
    """

    op: str
    line: tuple[str, int]
    call: str | None
    behind: int


class Cuts(TorchFunctionMode):
    """Listen for cuts. Use `follow`; afterwards ask `cut_of`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        named = list(model.named_parameters())
        self._bit = {id(one): 1 << place for place, (_, one) in enumerate(named)}
        self._named = {name: 1 << place for place, (name, _) in enumerate(named)}
        self._below: dict[Node, int] = {}
        self._behind: Any = WeakIdKeyDictionary()  # untyped in torch: tensor -> mask
        self._gone = 0
        self._cuts: list[Cut] = []
        self._stack: list[str] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,  # torch's own signature
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # whatever func returns
        """Run the op and pass on what stands behind its inputs."""
        out = func(*args, **(kwargs or {}))
        given = list(tensors((args, tuple((kwargs or {}).values()))))
        name = getattr(func, "__name__", "")
        if given and (name in LEAVING or name == "__setitem__"):
            self._leave(name, given)
        elif given and isinstance(out, (Tensor, tuple, list)):
            self._pass_on(func, given, list(tensors(out)))
        return out

    def _leave(self, name: str, given: list[Tensor]) -> None:
        behind = self._mask(given)
        if name == "__setitem__":
            self._behind[given[0]] = behind
            return
        fresh = behind | self._live(given)
        self._note(name, fresh)
        self._gone |= fresh

    def _pass_on(self, func: Callable[..., Any], given: list[Tensor], out: list[Tensor]) -> None:
        behind = self._mask(given)
        flat = getattr(func, "__name__", "").rstrip("_") in FLAT
        if out and (flat or not any(one.requires_grad for one in out)):
            fresh = self._live(given)
            if fresh:
                self._note(_op_name(func), fresh)
            behind |= fresh
        if behind:
            for one in out:
                self._behind[one] = behind | self._behind.get(one, 0)

    def _note(self, op: str, behind: int) -> None:
        for cut in self._cuts:
            behind &= ~cut.behind
        if behind:
            op = op if torch.is_grad_enabled() or op in LEAVING else "no_grad"
            call = self._stack[-1] if self._stack else None
            self._cuts.append(Cut(op, users_line(), call, behind))

    def _mask(self, given: list[Tensor]) -> int:
        mask = 0
        for one in given:
            mask |= self._behind.get(one, 0)
        return mask

    def _live(self, given: list[Tensor]) -> int:
        """Mask of the parameters that the given tensors could still send a gradient to."""
        mask = 0
        for one in given:
            if one.grad_fn is not None:
                mask |= self._reach(one.grad_fn)
            elif one.requires_grad:
                mask |= self._bit.get(id(one), 0)
        return mask

    def _reach(self, root: Node) -> int:
        """Mask of the parameters below a node; each node is visited once in a whole pass."""
        stack = [root]
        while stack:
            node = stack[-1]
            below = [child for child, _ in node.next_functions if child is not None]
            unknown = [child for child in below if child not in self._below]
            if unknown and node not in self._below:
                stack += unknown
                continue
            mask = self._bit.get(id(getattr(node, "variable", None)), 0)
            for child in below:
                mask |= self._below[child]
            self._below[node] = mask
            stack.pop()
        return self._below[root]

    def cut_of(self, name: str, roots: list[Tensor]) -> Cut | None:
        """Return the cut behind which a parameter reaches the roots; None when it does not."""
        bit = self._named[name]
        if not bit & (self._mask(roots) | self._gone):
            return None
        return next((cut for cut in self._cuts if cut.behind & bit), None)


@contextmanager
def follow(model: nn.Module) -> Iterator[Cuts]:
    """Follow a model's parameters inside the block; the hooks are gone afterwards."""
    cuts = Cuts(model)
    handles = [handle for name, one in model.named_modules() for handle in _hook(cuts, name, one)]
    try:
        with cuts:
            yield cuts
    finally:
        for handle in handles:
            handle.remove()


def _hook(cuts: Cuts, name: str, module: nn.Module) -> Iterator[Any]:
    def before(_module: nn.Module, _args: Tree) -> None:
        cuts._stack.append(name)

    def after(_module: nn.Module, _args: Tree, _output: Tree) -> None:
        cuts._stack.pop()

    yield module.register_forward_pre_hook(before)
    yield module.register_forward_hook(after, always_call=True)


def _op_name(func: Callable[..., Any]) -> str:
    """Name of the op as a user would write it: detach, data, argmax."""
    name = str(resolve_name(func) or getattr(func, "__name__", func))
    return name.removesuffix(".__get__").rpartition(".")[2]
