"""Residual branches, found in the autograd graph of the loss.

A sum is a residual one when one of its sides is an output that the other side is computed from:
x + F(x). The branch's end is the last parameter that F passes. A sum with a projected skip, as at
the stages of a ResNet, is not taken for one, as neither side is computed from the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import Tensor
from torch.autograd.graph import Node

from steadygrad.probe.graph import VIEWS, is_leaf, reachable
from steadygrad.remedies._pass import first_loss
from steadygrad.remedies.remedy import Scene, Unfit

LIKE_VIEWS = re.compile(r"^(Clone|ToCopy|NativeDropout|Div|Mul|Expand|Add)Backward")
PASSED = re.compile(r"^(T|Transpose|View|Reshape|Permute|ToCopy|Expand)Backward")
WITH_PARAMETERS = re.compile(r"(Addmm|Mm|Bmm|Linear|Mv|Convolution.*|.*Norm)Backward")


Branch = tuple[str, ...]
"""The names of the parameters at the end of a residual branch, weight first."""


def branches_of(scene: Scene) -> list[Branch]:
    """The residual branches of one forward pass, first ones first; raise Unfit where none is."""
    loss = first_loss(scene)
    if loss.grad_fn is None:
        raise Unfit("The loss does not depend on any trainable parameter.")
    names = {id(one): name for name, one in scene.model.named_parameters()}
    order = reachable(loss.grad_fn)
    found = [
        branch
        for node in order
        if node.name().startswith("AddBackward")
        for branch in _branch(node, names)
    ]
    if not found:
        raise Unfit("No residual sum x + F(x) of this model ends in a layer of its own.")
    return found


def _branch(node: Node, names: dict[int, str]) -> Iterator[Branch]:
    sides = [one for one, _ in node.next_functions if one is not None and not is_leaf(one)]
    if len(sides) != 2:
        return
    for side, skip in (sides, sides[::-1]):
        end = _end(side)
        if end is not None and skip in set(reachable(side)):
            ends = tuple(_parameters(end, names))
            if ends:
                yield ends


def _end(node: Node) -> Node | None:
    """The last op with parameters, seen from the sum through views, dropout, and scaling."""
    while not WITH_PARAMETERS.match(node.name()):
        data = [one for one, _ in node.next_functions if one is not None and not is_leaf(one)]
        passes = VIEWS.match(node.name()) or LIKE_VIEWS.match(node.name())
        if len(data) != 1 or not passes:
            return None
        node = data[0]
    return node


def _parameters(node: Node, names: dict[int, str]) -> list[str]:
    """Names of the parameters that enter an op, looking through views, weights first."""
    found: list[Tensor] = []
    stack = [one for one, _ in node.next_functions if one is not None]
    while stack:
        one = stack.pop()
        variable = getattr(one, "variable", None)
        if variable is not None:
            found.append(variable)
        elif len(one.next_functions) == 1 and PASSED.match(one.name()):
            stack += [child for child, _ in one.next_functions if child is not None]
    found.sort(key=lambda parameter: -parameter.dim())
    return [names[id(one)] for one in found if id(one) in names]
