"""What a module takes and returns is walked and rebuilt without losing its type."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

from steadygrad.probe.tree import is_signal, map_tensors, tensors


class Pair(NamedTuple):
    """Two tensors with names."""

    first: Tensor
    second: Tensor


class NamedPair(Pair):
    """A class of the user's on top of a named tuple."""


@dataclass
class Batch:
    """A user's batch."""

    inputs: Tensor
    label: str


A, B = torch.tensor([1.0]), torch.tensor([2.0])
TREES: dict[str, Any] = {
    "tensor": A,
    "tuple": (A, (B,)),
    "list": [A, [B], None, 3],
    "dict": {"a": A, "b": {"c": B}, "name": "x"},
    "ordered dict": OrderedDict(b=A, a=B),
    "named tuple": Pair(A, B),
    "subclass of a named tuple": NamedPair(A, B),
    "packed sequence": pack_sequence([torch.ones(3), torch.ones(2)]),
    "nothing": None,
}


@pytest.mark.parametrize("name", TREES)
def test_a_tree_is_rebuilt_in_its_own_type(name: str) -> None:
    tree = TREES[name]
    doubled = map_tensors(tree, lambda t: 2 * t)
    assert type(doubled) is type(tree)
    given, changed = list(tensors(tree)), list(tensors(doubled))
    assert all(torch.equal(2 * a, b) for a, b in zip(given, changed, strict=True))


def test_the_order_of_tensors_is_that_of_the_tree() -> None:
    assert [float(t) for t in tensors([B, {"x": A}, (B,)])] == [2.0, 1.0, 2.0]


@pytest.mark.parametrize("tree", [Batch(A, "cat"), UserDict(a=A)], ids=["dataclass", "user dict"])
def test_a_users_container_is_looked_into(tree: object) -> None:
    assert [float(t) for t in tensors(tree)] == [1.0]


@pytest.mark.parametrize("tree", ["text", 3, None, object(), Batch, {1.0, 2.0}])
def test_nothing_else_holds_tensors(tree: object) -> None:
    assert list(tensors(tree)) == []
    assert map_tensors(tree, lambda t: 2 * t) is tree


def test_other_objects_are_passed_through() -> None:
    marker = object()
    assert map_tensors((A, marker, None), lambda t: t)[1:] == (marker, None)


def test_a_dict_is_copied_and_the_given_one_kept() -> None:
    given = OrderedDict(a=A)
    map_tensors(given, lambda t: 2 * t)
    assert given["a"] is A


@pytest.mark.parametrize(
    ("tensor", "signal"),
    [
        (torch.ones(2), True),
        (torch.ones(2, dtype=torch.bfloat16), True),
        (torch.ones(2, dtype=torch.long), False),
        (torch.ones(2, dtype=torch.complex64), False),
        (torch.eye(2).to_sparse(), False),
    ],
)
def test_a_signal_is_dense_and_floating(tensor: Tensor, signal: bool) -> None:
    assert is_signal(tensor) is signal


def test_inside_a_transform_of_torch_nothing_is_a_signal() -> None:
    seen: list[bool] = []

    def note(x: Tensor) -> Tensor:
        seen.append(is_signal(x))
        return x

    torch.func.vmap(note)(torch.ones(3, 2))
    assert seen == [False]
