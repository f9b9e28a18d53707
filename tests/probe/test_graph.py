"""The trunk is what every path passes: each node is removed in turn, to see what is left."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd.graph import Node
from torch.nn import functional

from steadygrad.probe.graph import Graph, data_graph, leaves, reachable, sink_node


def weight(rows: int = 4, columns: int = 4) -> Tensor:
    return torch.randn(rows, columns, requires_grad=True)


def data() -> Tensor:
    return torch.randn(3, 4, requires_grad=True)


def plain(x: Tensor) -> Tensor:
    for _ in range(4):
        x = (x @ weight()).relu()
    return x


def residual(x: Tensor) -> Tensor:
    for _ in range(4):
        x = x + (x @ weight()).relu() @ weight()
    return x.tanh()


def unet(x: Tensor) -> Tensor:
    first = (x @ weight()).relu()
    second = (first @ weight()).relu()
    up = torch.cat([second @ weight(), second], dim=1) @ weight(8)
    return torch.cat([up, first], dim=1) @ weight(8)


def dense(x: Tensor) -> Tensor:
    grown = x
    for place in range(1, 4):
        grown = torch.cat([grown, (grown @ weight(4 * place)).relu()], dim=1)
    return grown.sum()


def shared(x: Tensor) -> Tensor:
    w = weight()
    return ((x @ w).tanh() @ w).tanh() @ w


def squared(x: Tensor) -> Tensor:
    h = x @ weight()
    return h * h + h


def attention(x: Tensor) -> Tensor:
    q, k, v = (x @ weight(4, 12)).chunk(3, dim=1)
    return (q @ k.T).softmax(-1) @ v + x


def layered(x: Tensor) -> Tensor:
    return functional.layer_norm(x @ weight(), (4,), torch.ones(4, requires_grad=True)) * x


NETWORKS: tuple[Callable[[Tensor], Tensor], ...] = (
    plain,
    residual,
    unet,
    dense,
    shared,
    squared,
    attention,
    layered,
)


def edges(node: Node) -> list[Node]:
    return [child for child, _ in node.next_functions if child is not None]


def reaches(start: Node, goal: Node, without: Node | None = None) -> bool:
    stack, seen = [start], {start, without}
    while stack:
        node = stack.pop()
        if node is goal and node is not without:
            return True
        if node is without:
            continue
        found = [child for child in edges(node) if child not in seen]
        seen.update(found)
        stack += found
    return False


def slow_trunk(root: Node, sink: Node) -> set[Node]:
    """Nodes without which the sink cannot be reached: the definition, one search per node."""
    inner = {node for node in reachable(root) if not reaches(root, sink, without=node)}
    return inner | {root, sink}


def graph_of(out: Tensor, *inputs: Tensor) -> Graph:
    assert out.grad_fn is not None
    graph = data_graph(out.grad_fn, [sink_node(x) for x in inputs])
    assert graph is not None
    return graph


@pytest.mark.parametrize("network", NETWORKS)
def test_the_trunk_is_what_every_path_passes(network: Callable[[Tensor], Tensor]) -> None:
    x = data()
    out = network(x)
    graph = graph_of(out, x)
    assert out.grad_fn is not None
    assert set(graph.trunk) == slow_trunk(out.grad_fn, sink_node(x))
    assert (graph.trunk[0], graph.trunk[-1]) == (out.grad_fn, sink_node(x))


@pytest.mark.parametrize("network", NETWORKS)
def test_the_graph_holds_the_nodes_on_a_path_and_no_weights(
    network: Callable[[Tensor], Tensor],
) -> None:
    x = data()
    out = network(x)
    assert out.grad_fn is not None
    graph = graph_of(out, x)
    sink = sink_node(x)
    expected = {node for node in reachable(out.grad_fn) if reaches(node, sink)}
    assert set(graph.order) == expected
    assert [n for n in graph.order if "AccumulateGrad" in n.name()] == [sink]


@pytest.mark.parametrize("network", NETWORKS)
def test_a_node_stands_behind_the_trunk_nodes_above_it(
    network: Callable[[Tensor], Tensor],
) -> None:
    x = data()
    graph = graph_of(network(x), x)
    for node in graph.order:
        before = [place for place, one in enumerate(graph.trunk) if reaches(one, node)]
        assert graph.segment[node] == max(before)


@st.composite
def random_networks(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Draw a network whose every op adds or multiplies two of the values before it."""
    x = data()
    values = [x]
    for _ in range(draw(st.integers(1, 12))):
        first, second = (values[-1 - draw(st.integers(0, min(3, len(values) - 1)))] for _ in "ab")
        values.append(draw(st.sampled_from([torch.add, torch.mul]))(first, second))
    return x, values[-1]


@settings(max_examples=60)
@given(random_networks())
def test_the_trunk_of_any_network_is_what_every_path_passes(pair: tuple[Tensor, Tensor]) -> None:
    x, out = pair
    assert out.grad_fn is not None
    assert set(graph_of(out, x).trunk) == slow_trunk(out.grad_fn, sink_node(x))


def test_of_two_inputs_the_one_under_more_weights_is_the_sink() -> None:
    deep, late = data(), data()
    hidden = (deep @ weight()).relu()
    out = (hidden + late) @ weight()
    assert out.grad_fn is not None
    sinks = [sink_node(late), sink_node(deep)]
    weights = [node for node in reachable(out.grad_fn) if node.name() == "MmBackward0"]
    graph = data_graph(out.grad_fn, sinks, weights)
    assert graph is not None
    assert graph.sink is sinks[1]
    assert set(graph.trunk) == slow_trunk(out.grad_fn, sinks[1])
    assert set(graph.order) >= set(sinks)
    assert sinks[0] not in graph.main


def test_an_input_that_is_used_twice_gives_one_sink() -> None:
    x = data()
    out = x @ weight() + x @ weight()
    graph = graph_of(out, x)
    assert [node.name() for node in graph.trunk] == ["AddBackward0", sink_node(x).name()]


def test_an_embedding_can_be_the_sink() -> None:
    embedded = functional.embedding(torch.tensor([0, 1]), weight())
    out = embedded @ weight()
    graph = graph_of(out, embedded)
    assert [node.name() for node in graph.trunk] == ["MmBackward0", "EmbeddingBackward0"]


def test_without_a_path_there_is_no_graph() -> None:
    x = data()
    out = data() @ weight() + x.detach()
    assert out.grad_fn is not None
    assert data_graph(out.grad_fn, [sink_node(x)]) is None
    assert data_graph(out.grad_fn, []) is None


def test_a_tensor_without_gradient_has_no_sink() -> None:
    with pytest.raises(ValueError, match="requires grad"):
        sink_node(torch.ones(2))


def test_leaves_are_the_parameters_that_enter_from_the_side() -> None:
    x, w, b = data(), weight(5, 4), torch.zeros(5, requires_grad=True)
    out = functional.linear(x, w, b)
    graph = graph_of(out, x)
    assert {id(p) for p in leaves(graph.trunk[0], set(graph.order))} == {id(w), id(b)}


def test_a_reparametrised_weight_is_found_through_its_ops() -> None:
    x, direction, size = data(), weight(), torch.ones(4, 1, requires_grad=True)
    out = x @ (size * direction / direction.norm(dim=1, keepdim=True)).T
    graph = graph_of(out, x)
    found = {id(p) for p in leaves(graph.trunk[0], set(graph.order))}
    assert found == {id(direction), id(size)}


def test_consumers_are_seen_through_views() -> None:
    x = data()
    hidden = x @ weight()
    out = hidden.view(2, 6).transpose(0, 1).relu()
    graph = graph_of(out, x)
    assert hidden.grad_fn is not None
    assert [node.name() for node in graph.consumers(hidden.grad_fn)] == ["ReluBackward0"]


def test_a_graph_deeper_than_pythons_stack_is_walked() -> None:
    x = data()
    out = x
    for _ in range(5_000):
        out = out + 1
    assert len(graph_of(out, x).trunk) == 5_001
