"""Walk the nested arguments and outputs of a module: tuples, dicts, packed sequences, batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

PLAIN = (bool, int, float, str, type(None))  # by far the most that is met
Tree = Any  # whatever a module takes or returns


def tensors(tree: Tree) -> Iterator[Tensor]:
    """Yield the tensors of a nested structure in order; look into nothing but containers."""
    if isinstance(tree, Tensor):
        yield tree
        return
    for part in _parts(tree):
        if isinstance(part, Tensor):
            yield part
        elif type(part) not in PLAIN:
            yield from tensors(part)


def _parts(tree: Tree) -> Iterable[Tree]:
    """What a container holds; nothing for anything else."""
    if type(tree) in PLAIN:
        return ()
    if isinstance(tree, PackedSequence):
        return (tree.data,)
    if isinstance(tree, Mapping):
        return tree.values()
    if isinstance(tree, (tuple, list)):
        return tree
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return [getattr(tree, entry.name) for entry in dataclasses.fields(tree)]
    return ()


def map_tensors(tree: Tree, change: Callable[[Tensor], Tensor]) -> Tree:
    """Rebuild a nested structure with every tensor changed; other objects are passed through."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, PackedSequence):
        return tree._replace(data=change(tree.data))
    if isinstance(tree, dict):
        return _rebuilt(tree, {key: map_tensors(value, change) for key, value in tree.items()})
    if isinstance(tree, (tuple, list)):
        parts = [map_tensors(value, change) for value in tree]
        named = getattr(tree, "_fields", None) is not None
        return type(tree)(*parts) if named else type(tree)(parts)
    return tree


def _rebuilt(original: dict[Any, Any], changed: dict[Any, Any]) -> dict[Any, Any]:
    """Give a dict subclass (as ModelOutput) its type back where it can be copied."""
    if type(original) is dict:
        return changed
    copied = original.copy()
    copied.update(changed)
    return copied


def is_signal(tensor: Tensor) -> bool:
    """Whether a tensor is a dense floating signal that can carry a gradient and be read."""
    dense = tensor.is_floating_point() and tensor.layout is torch.strided
    return dense and not is_transformed(tensor)


def is_transformed(tensor: Tensor) -> bool:
    """Whether a tensor lives inside torch.func.vmap or grad, where no number can be read.

    The question is private to torch; where it cannot be asked, the answer is no.
    """
    functorch = getattr(torch._C, "_functorch", None)
    ask = getattr(functorch, "is_functorch_wrapped_tensor", None)
    return ask is not None and bool(ask(tensor))
