"""Parameters that are zero by design hide what lies behind them: the flow is read with them open.

A zero gamma at the end of a residual branch (Goyal 2017, section 5.1), a zero-initialised head,
LoRA's B or a LayerScale of zero stop signal or gradient only until the first step. A parameter
counts when it is zero throughout and multiplies the signal; one that is added (a bias, a position
table) does not hide anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from steadygrad.probe.graph import reachable

PASSES = re.compile(r"^(T|Transpose|View|Reshape|Expand|Permute|Unsqueeze|ToCopy|Alias|Clone)")
MULTIPLIES = re.compile(r"^(Mul|Addmm|Mm|Bmm|Baddbmm|Linear|.*Convolution|Mv|Dot)Backward")
NORMALISES = re.compile(r"(BatchNorm|LayerNorm|GroupNorm|RmsNorm)")


def zero_by_design(model: nn.Module, roots: Sequence[Tensor]) -> dict[str, nn.Parameter]:
    """Parameters by name that are all zero and multiply the signal in the graph of these roots."""
    zero = {n: p for n, p in model.named_parameters() if p.numel() > 0 and _is_zero(p.detach())}
    if not zero:
        return {}
    multiplied = _multiplied(roots, {id(p) for p in zero.values()})
    return {name: p for name, p in zero.items() if id(p) in multiplied}


def _is_zero(tensor: Tensor) -> bool:
    if tensor.layout is not torch.strided or tensor.is_quantized:
        return False
    return not tensor.reshape(-1)[0] and not tensor.any()  # most are told by their first element


def _multiplied(roots: Sequence[Tensor], wanted: set[int]) -> set[int]:
    """Ids of the wanted parameters of which some parent, views apart, is a product."""
    parents: dict[Node, list[tuple[int, Node]]] = {}
    holders: list[Node] = []
    for root in roots:
        for node in reachable(root.grad_fn) if root.grad_fn is not None else []:
            if id(getattr(node, "variable", None)) in wanted:
                holders.append(node)
            for number, (child, _) in enumerate(node.next_functions):
                if child is not None:
                    parents.setdefault(child, []).append((number, node))
    return {
        id(holder.variable)  # type: ignore[attr-defined] # only accumulators are among the holders
        for holder in holders
        if _enters_product(holder, parents)
    }


def _enters_product(node: Node, parents: dict[Node, list[tuple[int, Node]]]) -> bool:
    stack, seen = [node], {node}
    while stack:
        for number, parent in parents.get(stack.pop(), []):
            name = parent.name()
            if MULTIPLIES.match(name) and not _adds(name, number):
                return True
            if NORMALISES.search(name) and number == 1:
                return True
            if PASSES.match(name) and parent not in seen:
                seen.add(parent)
                stack.append(parent)
    return False


def _adds(name: str, number: int) -> bool:
    """Whether this input of a product node is its bias."""
    return number == 0 if "ddmm" in name else number == 2 and ("Conv" in name or "Linear" in name)


@contextmanager
def opened(zero: dict[str, nn.Parameter]) -> Iterator[None]:
    """Fill vectors with one and matrices with N(0, 1 / fan_in) inside the block, then zero again.

    Through `.data`, which autograd does not count as a change: the values are the same afterwards,
    so graphs that saved them stay valid.
    """
    for parameter in zero.values():
        _fill(parameter.data)
    try:
        yield
    finally:
        for parameter in zero.values():
            parameter.data.zero_()


def _fill(parameter: Tensor) -> None:
    if parameter.dim() < 2:
        parameter.fill_(1.0)
        return
    generator = torch.Generator(parameter.device).manual_seed(0)
    fan_in = parameter[0].numel()
    parameter.normal_(0.0, fan_in**-0.5, generator=generator)
