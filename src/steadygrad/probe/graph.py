"""The autograd graph between a loss and the inputs: its order, its trunk, and its side branches.

The trunk are the nodes that every path from the root to the sink passes (the dominators of the
sink). In a topological order they are found in one sweep: a node is passed by every path exactly
if, when its turn comes, all edges that left the nodes before it lead to it. An edge that passed
it by would be part of a path without it; so cost is linear in nodes and edges.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from torch import Tensor
from torch.autograd.graph import Node

VIEWS = re.compile(
    r"^(T|Transpose|View|Reshape|Permute|Unsqueeze|Squeeze|Alias|UnsafeView)Backward"
)


@dataclass(slots=True)
class Graph:
    """Nodes on a path from root to a sink, root first.

    `trunk` are the nodes on every path to the chosen sink; `segment[node]` is the place in the
    trunk after which a node stands; `children[node]` are its data edges as (input number, node);
    `main` are the nodes that lead to the chosen sink, the others lead to other inputs only.
    """

    order: list[Node]
    children: dict[Node, list[tuple[int, Node]]]
    trunk: list[Node]
    segment: dict[Node, int]
    sink: Node
    main: set[Node]
    parents: dict[Node, list[Node]] = field(default_factory=dict)

    def above(self, node: Node) -> list[Node]:
        """Nodes that take in what this one puts out."""
        if not self.parents:
            for parent, edges in self.children.items():
                for _, child in edges:
                    self.parents.setdefault(child, []).append(parent)
        return self.parents.get(node, [])

    def consumers(self, node: Node) -> list[Node]:
        """Nodes that take in what this one puts out, looking through views."""
        found: list[Node] = []
        stack = [node]
        while stack:
            for parent in self.above(stack.pop()):
                (stack if VIEWS.match(parent.name()) else found).append(parent)
        return found


def reachable(root: Node) -> list[Node]:
    """All nodes below root, children before parents (iterative: graphs are deeper than stacks)."""
    order: list[Node] = []
    seen = {root}
    stack = [(root, iter(root.next_functions))]
    while stack:
        node, edges = stack[-1]
        for child, _ in edges:
            if child is not None and child not in seen:
                seen.add(child)
                stack.append((child, iter(child.next_functions)))
                break
        else:
            order.append(node)
            stack.pop()
    return order


def sink_node(tensor: Tensor) -> Node:
    """Return the node at which the gradient of this tensor arrives."""
    if tensor.grad_fn is not None:
        return tensor.grad_fn
    accumulate = tensor.view_as(tensor).grad_fn
    if accumulate is None:
        raise ValueError("expected a tensor that requires grad, got one that does not")
    return accumulate.next_functions[0][0]  # type: ignore[return-value] # a leaf's accumulator


def data_graph(root: Node, sinks: Sequence[Node], is_weight: Iterable[Node] = ()) -> Graph | None:
    """Build the graph from root to the sinks; None when no sink is reached.

    The trunk leads to the sink with the most weight ops on its longest path.
    """
    below = reachable(root)
    reaches = _on_path(below, set(sinks))
    if root not in reaches:
        return None
    sink = _deepest(below, [s for s in sinks if s in reaches], set(is_weight))
    children = {node: _data_edges(node, reaches) for node in reversed(below) if node in reaches}
    main = _on_path(below, {sink})
    trunk, segment = _trunk(below[::-1], main, sink)
    _place_others(children, segment)
    return Graph(list(children), children, trunk, segment, sink, main)


def _on_path(below: Sequence[Node], sinks: set[Node]) -> set[Node]:
    reaches: set[Node] = set()
    for node in below:
        if node in sinks or any(child in reaches for child, _ in node.next_functions):
            reaches.add(node)
    return reaches


def _data_edges(node: Node, reaches: set[Node]) -> list[tuple[int, Node]]:
    edges = enumerate(child for child, _ in node.next_functions)
    return [(number, child) for number, child in edges if child is not None and child in reaches]


def _deepest(below: Sequence[Node], sinks: Sequence[Node], weights: set[Node]) -> Node:
    """Sink with the most weight ops above it; of equals the first."""
    depth: dict[Node, int] = {below[-1]: 0}
    for node in reversed(below):
        if node in depth:
            mine = depth[node] + (node in weights)
            for child, _ in node.next_functions:
                if child is not None:
                    depth[child] = max(depth.get(child, 0), mine)
    return max(sinks, key=lambda sink: depth[sink])


def _trunk(
    order: Sequence[Node], reaches: set[Node], sink: Node
) -> tuple[list[Node], dict[Node, int]]:
    arriving: dict[Node, int] = {order[0]: 0}
    open_edges = 0
    trunk: list[Node] = []
    segment: dict[Node, int] = {}
    for node in order:
        if node not in reaches:
            continue
        if open_edges == arriving.get(node, 0):
            trunk.append(node)
        segment[node] = len(trunk) - 1
        open_edges -= arriving.get(node, 0)
        if node is sink:
            break
        for _, child in _data_edges(node, reaches):
            arriving[child] = arriving.get(child, 0) + 1
            open_edges += 1
    return trunk, segment


def _place_others(children: dict[Node, list[tuple[int, Node]]], segment: dict[Node, int]) -> None:
    """Place nodes that lead to other sinks in the segment of their first parent."""
    for node, edges in children.items():
        for _, child in edges:
            segment.setdefault(child, segment[node])


def leaves(node: Node, inside: set[Node], limit: int = 200) -> list[Tensor]:
    """Parameters that enter at a node from the side: through children that carry no data."""
    found: list[Tensor] = []
    stack = [child for child, _ in node.next_functions if child is not None and child not in inside]
    stack.reverse()  # so that parameters come in the order of the op's inputs
    seen = set(stack)
    while stack and len(seen) < limit:
        side = stack.pop()
        variable = getattr(side, "variable", None)
        if variable is not None:
            found.append(variable)
        for child, _ in side.next_functions:
            if child is not None and child not in seen and child not in inside:
                seen.add(child)
                stack.append(child)
    return found


def is_leaf(node: Node) -> bool:
    """Whether a node stands for a tensor that gradients are accumulated in."""
    return getattr(node, "variable", None) is not None
