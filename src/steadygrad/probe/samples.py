"""Tell whether all samples of a batch are the same, so that nothing can tell them apart."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from steadygrad.probe.subject import Readings, Subject
from steadygrad.probe.trace import Trace
from steadygrad.probe.tree import Tree, is_transformed, tensors

PLAIN = (Tensor, bool, int, float, str, type(None))
SCATTERS = re.compile(r"dropout|batch_?norm|instance_norm|group_norm|layer_norm")
LEAST = 4  # samples


def samples(subject: Subject) -> Readings:
    """Read the fact `alike`: how many equal samples the model was given; {} when they differ."""
    trees = [call.inputs for call in subject.trace.calls if call.parent == -1]
    found = _alike(trees) if trees else {}
    same = bool(found) and _stay_alike(subject.trace, found["samples"])
    return Readings(facts={"alike": found if same else {}})


def _alike(trees: list[Tree]) -> dict[str, Any]:
    """Number of samples, where everything that was given is a tensor of as many equal rows."""
    given = [one for tree in trees for one in tensors(tree)]
    sizes = {len(one) if one.dim() else 0 for one in given}
    readable = all(_plain(tree) for tree in trees) and not any(map(is_transformed, given))
    if len(sizes) != 1 or max(sizes) < LEAST or not readable:
        return {}
    with torch.no_grad():
        if not all(_equal_rows(one.detach()) for one in given):
            return {}
        zero = not any(bool(one.detach().any()) for one in given)
    return {"samples": max(sizes), "zero": zero}


def _plain(tree: Tree) -> bool:
    """Whether a model was given nothing but tensors and numbers, in tuples, lists and dicts."""
    if isinstance(tree, dict):
        return all(_plain(value) for value in tree.values())
    if isinstance(tree, (tuple, list)):
        return all(_plain(value) for value in tree)
    return isinstance(tree, PLAIN)


def _equal_rows(given: Tensor) -> bool:
    if given.layout is not torch.strided or bool((given[0] != given[1]).any()):
        return False
    return bool((given == given[:1]).all())


def _stay_alike(trace: Trace, count: int, *, rounding: float = 1e-4) -> bool:
    """Whether nothing tells samples apart later, but dropout and norms that blow up rounding.

    Noise drawn in the forward pass does, and so does a graph that the model holds.
    """
    for op in trace.ops.values():
        if op.shape[:1] == (count,) and op.spread > rounding:
            return SCATTERS.search(op.name) is not None
    return True
