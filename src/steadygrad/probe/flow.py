"""How signal and gradient travel through the depth: one renormalised backward pass.

A random N(0, 1) cotangent enters at the model's output. At every trunk node the gradient's L2 norm
is noted and the gradient is set back to a root mean square of one; backward is linear, so the
logarithms of the factors add up to the logarithm of the whole gain, exactly, at any depth, without
under- or overflow. Beside the trunk, each op's own gain is read in place.

For i.i.d. weights the L2 norm of the gradient and the second moment of the activations change by
the same factor Var(W) fan_in across a weight op (He 2015, sections 2.2 and 2.3), whatever its shape
and stride, so both are used here and never a mean or a per-element norm.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from steadygrad.core.record import Site
from steadygrad.core.theory import Gain
from steadygrad.probe.gain import Activation, gain
from steadygrad.probe.gradients import gradients
from steadygrad.probe.graph import VIEWS, Graph, data_graph, leaves, sink_node
from steadygrad.probe.subject import Readings, Subject
from steadygrad.probe.trace import Op, log10_norm, spread, thin, within

PLAIN = (bool, int, float, str, type(None))
UNRELATED = ("training", "inplace", "_is_full_backward_hook")
CALM = 2.0  # decades; half precision has four on either side of one
ROLES = ("weight", "act", "norm", "block", "attn", "pool", "other")
WEIGHT = re.compile(
    r"Addmm|Addmv|MmBackward|MvBackward|Bmm|Convolution|Linear|Rnn|Embedding|Matmul"
)
NORM = re.compile(r"BatchNorm|LayerNorm|GroupNorm|RmsNorm|RMSNorm|InstanceNorm")
ATTENTION = re.compile(r"ScaledDotProduct|Softmax|Attention|Bmm")
PASSES = re.compile(
    VIEWS.pattern + r"|^(Add|Sub|Dropout|NativeDropout|Cat|Div|Clone|ToCopy)Backward"
)
POOL = re.compile(r"Mean|Pool|Select|Slice|Sum|Index|Gather|Upsample|Interpolate|Max|Unfold|Narrow")
ACTIVATION = re.compile(
    r"Relu|Tanh|Sigmoid|Gelu|Silu|Elu|Mish|Softplus|Hard|Prelu|Threshold|Clamp|Exp|Sin|Cos|Abs"
)


@dataclass(slots=True)
class Segment:
    """The stretch of the trunk between two of its nodes: one op, or a block with branches."""

    node: Node
    others: list[Node]
    role: str
    call: int
    name: str
    joins: bool = False
    opened: bool = False
    gain: float = math.nan
    weights: list[WeightOp] = field(default_factory=list)


@dataclass(slots=True)
class WeightOp:
    """A matrix multiplication or convolution with a parameter: where weights meet the signal."""

    node: Node
    op: Op | None
    module: str
    parameter: str
    weight: Tensor
    bias: Tensor | None
    call: int
    gain: float = math.nan
    row: dict[str, float] = field(default_factory=dict)


def flow(subject: Subject) -> Readings:
    """Read the gain of every trunk unit, of every op beside the trunk, and of every weight op.

    Rows: role "unit" (forward order) with gain, gain_<role>, log_rms, spread, zeros, cumulative,
    gsc, slope, slope_nominal; role "output" (activations, norms, attention) with op_gain,
    op_nominal, op_zeros; role "weight" with weight_gain, weight_back, bias_ratio, normed.
    Facts: `flow` with the totals. Blind where there is no path from an output to an input.
    """
    found = _graph(subject)
    if isinstance(found, str):
        return Readings(blind=dict.fromkeys(("flow", "gain", "op_gain", "weight_gain"), found))
    graph, weights = found
    uses = Counter(id(one.weight) for one in weights)
    heads = _heads(subject, graph, weights)
    for one in weights:
        one.row = _passage(subject, one) | {"uses": float(uses[id(one.weight)])}
        one.row["head"] = float(one.node in heads)
    segments = _segments(subject, graph, weights)
    local = _renormalised_backward(subject, graph, segments, weights)
    units = _units(segments)
    readings = Readings()
    readings.rows += _unit_rows(subject, graph, units)
    shifts = _shifts(subject, graph, weights)
    outputs = _op_rows(subject, graph, local)
    readings.rows += [(site, row) for _, site, row in outputs]
    readings.rows += [
        _norm_row(subject, graph, node, *shifts[node]) for node in _norms(graph, shifts)
    ]
    if not outputs:
        readings.blind["op_gain"] = "the network has no activation, norm, or attention"
    readings.facts["feeders"] = [_feeder(graph, node, shifts) for node, _, _ in outputs]
    readings.rows += [_weight_row(subject, graph, one, local) for one in weights]
    readings.facts["flow"] = _totals(subject, graph, segments, units, weights)
    subject.pulled = all(math.isfinite(segment.gain) for segment in segments)
    return readings


def _graph(subject: Subject) -> tuple[Graph, list[WeightOp]] | str:
    if not subject.outputs:
        return "no output of the model carries a gradient"
    root = subject.outputs[0].grad_fn
    if root is None:
        return "the output is an input: nothing was computed"
    if subject.outputs[0].is_complex() or subject.outputs[0].numel() == 0:
        return "the output is complex or empty"
    if log10_norm(subject.outputs[0].detach()) == math.inf:
        return "the output is not finite"
    trace = subject.trace
    sources = trace.inputs + trace.entries
    graph = data_graph(root, [sink_node(t) for t in trace.inputs])
    if graph is None:
        graph = data_graph(root, [sink_node(t) for t in trace.entries])
    if graph is None or not sources:
        return "no path of gradient leads from the output to an input"
    weights = _weight_ops(subject, graph)
    if len(sources) == 1:
        return graph, weights
    on_weight = [one.node for one in weights]
    deeper = data_graph(root, [sink_node(t) for t in sources], on_weight)
    return (deeper or graph), weights if deeper is None else _weight_ops(subject, deeper)


def _weight_ops(subject: Subject, graph: Graph) -> list[WeightOp]:
    """Weight ops in forward order: matmul-like nodes that a parameter of 2 or more axes enters."""
    names = {id(p): name for name, p in subject.model.named_parameters()}
    inside = set(graph.order)
    found = []
    for node in graph.order[::-1]:
        if not WEIGHT.search(node.name()):
            continue
        entering = leaves(node, inside)
        matrices = [p for p in entering if p.dim() >= 2 and not _is_signal(subject, node, p)]
        if matrices:
            biases = [p for p in entering if p.dim() == 1 and id(p) in names]
            name = names.get(id(matrices[0]), "")
            op = _op_of(subject, graph, node)
            bias = biases[0] if len(biases) == 1 else None
            call = subject.trace.call_of(node)
            owner = _owner(subject, name, matrices[0], call)
            found.append(WeightOp(node, op, owner, name, matrices[0], bias, call))
    return found


def _is_signal(subject: Subject, node: Node, tensor: Tensor) -> bool:
    """Whether a trained tensor is what a frozen layer is applied to: an image that is optimised.

    It enters a layer whose own weights are frozen, or stands where a convolution or `linear` takes
    its input.
    """
    call, op = subject.trace.call_of(node), subject.trace.ops.get(node)
    module = subject.trace.calls[call].module if call >= 0 else nn.Module()
    own = [p for p in module.parameters(recurse=False) if p.dim() >= 2]
    if own:
        return not any(p.requires_grad or p is tensor for p in own)
    if "Convolution" in node.name():
        return _enters(node, 0, tensor)
    return (
        "Addmm" in node.name()
        and op is not None
        and op.name == "linear"
        and (_enters(node, 1, tensor))
    )


def _enters(node: Node, edge: int, tensor: Tensor) -> bool:
    """Whether a leaf is what a node takes at this place."""
    child = node.next_functions[edge][0]
    return child is not None and getattr(child, "variable", None) is tensor


def _owner(subject: Subject, name: str, weight: Tensor, call: int) -> str:
    """Name of the module that used a weight; of several that share it, the one that was called."""
    module = subject.trace.calls[call].module if call >= 0 else None
    if module is not None and any(p is weight for p in module.parameters(recurse=False)):
        return subject.trace.name_of(call) or name
    owner = name.rpartition(".")[0] or subject.trace.name_of(call) or name
    return owner.removesuffix(".parametrizations.weight")


def _heads(subject: Subject, graph: Graph, weights: Sequence[WeightOp]) -> set[Node]:
    """Weight ops between which and the output of their network no other stands.

    An actor's last layer is a head too, although a critic, a network called by itself, follows.
    """
    network = {one.node: subject.trace.ancestry(one.call)[:1] for one in weights}
    above: dict[Node, frozenset[int]] = {}
    heads = set()
    for node in graph.order:
        mine = above.get(node, frozenset())
        if node in network:
            own = frozenset(network[node] or [-1])
            if not own & mine:
                heads.add(node)
            mine |= own
        for _, child in graph.children[node]:
            above[child] = above.get(child, frozenset()) | mine
    return heads


def _op_of(subject: Subject, graph: Graph, node: Node) -> Op | None:
    """Reading of the op that made a node; of a composite's, that stands at the view it returned."""
    ops = subject.trace.ops
    while node not in ops:
        views = [parent for parent in graph.above(node) if VIEWS.match(parent.name())]
        if len(views) != 1:
            return None
        node = views[0]
    return ops[node]


def _segments(subject: Subject, graph: Graph, weights: Sequence[WeightOp]) -> list[Segment]:
    """Cut the trunk into segments, output first; the last trunk node is the sink itself."""
    others: list[list[Node]] = [[] for _ in graph.trunk]
    on_trunk = set(graph.trunk)
    for node in graph.order:
        if node not in on_trunk:
            others[graph.segment[node]].append(node)
    by_node = {one.node: one for one in weights}
    segments = []
    for node, between in zip(graph.trunk[:-1], others, strict=False):
        inside = [by_node[n] for n in (node, *between) if n in by_node]
        segments.append(_segment(subject, node, between, inside))
        segments[-1].joins = any(n not in graph.main for n in between)
        segments[-1].opened = _opens(subject, graph, (node, *between))
    return segments


def _opens(subject: Subject, graph: Graph, nodes: Sequence[Node]) -> bool:
    """Whether a parameter enters here that is zero but for this pass."""
    if not subject.opened:
        return False
    inside = set(graph.children)
    return any(id(p) in subject.opened for node in nodes for p in leaves(node, inside))


def _segment(subject: Subject, node: Node, others: list[Node], weights: list[WeightOp]) -> Segment:
    trace = subject.trace
    call = trace.shared_call(trace.call_of(n) for n in (node, *others))
    role = _role(subject, node, others, weights, call)
    own = weights[0].module if weights else ""
    name = own if role == "weight" else trace.name_of(call) or own
    return Segment(node, others, role, call, name, weights=weights)


def _role(
    subject: Subject, node: Node, others: list[Node], weights: list[WeightOp], call: int
) -> str:
    names = [n.name() for n in (node, *others)]
    kind = subject.trace.calls[call].kind if call >= 0 else ""
    if weights:
        return "weight" if not others else "block"
    if any(NORM.search(n) for n in names) or (others and "norm" in kind.lower()):
        return "norm"
    if any(ATTENTION.search(n) for n in names):
        return "attn"
    if any(ACTIVATION.search(n) for n in names) or "activation" in kind.lower():
        return "act"
    return "pool" if any(POOL.search(n) for n in names) else "other"


def _renormalised_backward(
    subject: Subject, graph: Graph, segments: list[Segment], weights: Sequence[WeightOp]
) -> dict[Node, float]:
    """Fill in the gains of segments and weight ops; return the gains of ops beside the trunk."""
    arrived: dict[Node, float] = {}
    sent: dict[Node, float] = {}
    local: dict[Node, float] = {}
    data = {node: [number for number, _ in edges] for node, edges in graph.children.items()}
    single = {segment.node for segment in segments if not segment.others}
    watched = {n for n in graph.order if _has_gain(n)} | {one.node for one in weights}
    watched -= single  # their gain is their segment's
    handles = [node.register_prehook(_rescale(node, arrived, sent)) for node in graph.trunk]
    handles += [node.register_hook(_measure(node, data[node], local)) for node in watched]
    try:
        gradient = _pull(subject, graph)
    finally:
        for handle in handles:
            handle.remove()
    if gradient is not None:
        arrived[graph.sink] = log10_norm(gradient)
    for segment, after in zip(segments, graph.trunk[1:], strict=True):
        segment.gain = _difference(arrived.get(after, -math.inf), sent.get(segment.node, math.nan))
        if segment.node in single:
            local[segment.node] = segment.gain
    for one in weights:
        one.gain = local.get(one.node, math.nan)
    return local


def _difference(after: float, before: float) -> float:
    """Gain in decades; not read where no gradient arrived."""
    return after - before if math.isfinite(before) else math.nan


def _has_gain(node: Node) -> bool:
    name = node.name()
    return bool(ACTIVATION.search(name) or NORM.search(name) or ATTENTION.search(name))


def _pull(subject: Subject, graph: Graph) -> Tensor | None:
    """Send the random cotangent back to the inputs; return the gradient at the trunk's sink."""
    out = subject.outputs[0]
    cotangent = subject.noise(out)
    known = subject.trace.inputs + subject.trace.entries
    targets = [t for t in known if sink_node(t) in graph.segment]
    found = gradients([out], targets, [cotangent])
    at = [sink_node(t) for t in targets]
    return found[at.index(graph.sink)] if graph.sink in at else None


GradHook = Callable[[tuple[Tensor, ...]], tuple[Tensor, ...] | None]


def _rescale(node: Node, arrived: dict[Node, float], sent: dict[Node, float]) -> GradHook:
    """Note the norm of the gradient that arrives at a node; set its root mean square to one.

    Within CALM decades of one it may stay as it is: the factors add up all the same.
    """

    def hook(gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        given = [g for g in gradients if g is not None]
        size = _joint(log10_norm(g) for g in given)
        arrived[node] = sent[node] = size
        if not math.isfinite(size):
            return None
        factor = 0.5 * math.log10(sum(g.numel() for g in given)) - size
        if abs(factor) < CALM:
            return None
        sent[node] = size + factor
        return tuple(g if g is None else _times_power(g, factor) for g in gradients)

    return hook


def _times_power(tensor: Tensor, exponent: float) -> Tensor:
    """Multiply by 10**exponent, in two steps where the factor would leave the float range."""
    if abs(exponent) < 30:
        return tensor * math.pow(10.0, exponent)
    half = math.pow(10.0, exponent / 2)
    return tensor * half * half


def _measure(node: Node, data: Sequence[int], local: dict[Node, float]) -> Callable[..., None]:
    """Note log10 of (gradient leaving a node on its data edges / gradient arriving)."""

    def hook(leaving: tuple[Tensor, ...], arriving: tuple[Tensor, ...]) -> None:
        before = _joint(log10_norm(g) for g in arriving if g is not None)
        chosen = (leaving[number] for number in data if number < len(leaving))
        after = _joint(log10_norm(g) for g in chosen if g is not None)
        local[node] = after - before if math.isfinite(before) else math.nan

    return hook


def _joint(logs: Iterable[float]) -> float:
    """log10 of the joint L2 norm of parts given by their log10 norms."""
    parts = list(logs)
    top = max(parts, default=-math.inf)
    if not math.isfinite(top):
        return float(top)
    return float(top + 0.5 * math.log10(sum(10.0 ** (2 * (part - top)) for part in parts)))


def _units(segments: list[Segment]) -> list[list[Segment]]:
    """Group segments, forward order: a weight op or block with what follows it up to the next."""
    units: list[list[Segment]] = []
    before_first: list[Segment] = []
    for segment in segments[::-1]:
        if segment.role in ("weight", "block"):
            units.append([segment])
        elif units:
            units[-1].append(segment)
        else:
            before_first.append(segment)
    if units:
        units[0][:0] = before_first
    return units or ([before_first] if before_first else [])


def _head(unit: list[Segment]) -> Segment:
    return next((s for s in unit if s.role in ("weight", "block")), unit[0])


def _unit_rows(
    subject: Subject, graph: Graph, units: list[list[Segment]]
) -> list[tuple[Site, dict[str, float]]]:
    rows = []
    cumulative = 0.0
    after: list[float] = []
    for unit in reversed(units):
        after.append(cumulative)
        cumulative += sum(segment.gain for segment in unit)
    after.reverse()
    entering = _entering(subject)
    for depth, (unit, below) in enumerate(zip(units, after, strict=True)):
        op = _put_out(subject, graph, unit)
        row = _unit_row(subject, unit, op, entering)
        row["cumulative"] = below
        head = _head(unit)
        fan_in = _fan_in(head.weights[0]) if head.weights else 0
        rows.append((Site(head.name, "unit", depth, _kind(head), fan_in), row))
        entering = op.log_norm if op else math.nan
    return rows


def _kind(head: Segment) -> str:
    return head.role if head.role != "weight" else head.node.name().removesuffix("Backward0")


def _unit_row(
    subject: Subject, unit: list[Segment], op: Op | None, entering: float
) -> dict[str, float]:
    row = {f"gain_{role}": 0.0 for role in ROLES}
    for segment in unit:
        row[f"gain_{segment.role}"] += 0.0 if math.isnan(segment.gain) else segment.gain
    read = [segment.gain for segment in unit if not math.isnan(segment.gain)]
    row["gain"] = sum(read) if read else math.nan
    row["uses"] = max((one.row["uses"] for s in unit for one in s.weights), default=0.0)
    row["opened"] = float(any(segment.opened for segment in unit))
    row["joins"] = float(any(segment.joins for segment in unit))
    row |= _signal(op) if op else {}
    row["gsc"] = row["gain"] + entering - op.log_norm if op else math.nan
    widths = [_width(one) for segment in unit for one in segment.weights]
    row["width"] = float(min(widths)) if widths else math.nan
    slopes = [_slopes(subject, s) for s in unit if s.role == "act"]
    row |= slopes[0] if slopes else {}
    return row


def _put_out(subject: Subject, graph: Graph, unit: list[Segment]) -> Op | None:
    """Reading of the last op in a unit that has one."""
    found = (_op_of(subject, graph, segment.node) for segment in reversed(unit))
    return next((op for op in found if op is not None), None)


def _signal(op: Op) -> dict[str, float]:
    return {
        "log_rms": op.log_rms,
        "spread": op.spread,
        "within": op.within,
        "zeros": op.zeros,
    }


def _entering(subject: Subject) -> float:
    sources = subject.trace.inputs or subject.trace.entries
    return log10_norm(sources[0].detach()) if sources else math.nan


def _slopes(subject: Subject, segment: Segment) -> dict[str, float]:
    """Read an activation: E f'^2 as measured and under N(0, 1), what it got, and its own gains."""
    trace = subject.trace
    module = trace.calls[segment.call].module if segment.call >= 0 else None
    op = trace.ops.get(segment.node)
    known = nominal_gain(module, op.name if op else "")
    before = [trace.ops[s].log_rms for s in op.sources if s in trace.ops] if op else []
    row = {"slope": 10.0 ** (2 * segment.gain), "pre_rms": before[0] if before else math.nan}
    if known is not None:
        row |= {"slope_nominal": known.slope, "eta": known.eta, "ideal": math.log10(known.forward)}
        row["act_nlc"] = math.log10(known.nlc)
    return row


def nominal_gain(module: nn.Module | None, function: str) -> Gain | None:
    """Gains of an activation module, or function of torch, under z ~ N(0, 1); None: unknown."""
    found = None
    if module is not None and not _has_children(module):
        learned = any(True for _ in module.parameters())
        found = _gain_of(module) if learned else _gain_like(type(module), _settings(module), module)
    return found or _gain_named(function.rstrip("_"))


Settings = tuple[tuple[str, object], ...]
_known: dict[tuple[type, Settings], Gain | None] = {}  # class and settings decide the gain


def _settings(module: nn.Module) -> Settings:
    """Plain attributes of a module, by which two of one class differ; buffers by identity."""
    own = vars(module)
    plain = [(k, v) for k, v in own.items() if isinstance(v, PLAIN) and k not in UNRELATED]
    return (*plain, *((name, id(value)) for name, value in own["_buffers"].items()))


def _gain_like(kind: type, settings: Settings, module: nn.Module) -> Gain | None:
    if (kind, settings) not in _known:
        _known[kind, settings] = _gain_of(module)
    return _known[kind, settings]


@functools.cache
def _gain_named(function: str) -> Gain | None:
    for home in (torch.nn.functional, torch):
        if callable(getattr(home, function, None)):
            return _gain_of(getattr(home, function))
    return None


def _gain_of(activation: Activation) -> Gain | None:
    try:
        return gain(activation)
    except Exception:  # a user's module that is no elementwise function of one tensor
        return None


def _has_children(candidate: object) -> bool:
    return isinstance(candidate, nn.Module) and any(True for _ in candidate.children())


def _op_rows(
    subject: Subject, graph: Graph, local: dict[Node, float]
) -> list[tuple[Node, Site, dict[str, float]]]:
    """Read every activation, norm and attention op in place, on the trunk and beside it."""
    trace = subject.trace
    rows = []
    for node in graph.order[::-1]:
        if node not in local or not _has_gain(node) or WEIGHT.search(node.name()):
            continue
        op = trace.ops.get(node)
        call = trace.call_of(node)
        row = {"op_gain": local[node]}
        if op is not None:
            row |= {"op_zeros": op.zeros, "op_zeros_before": op.zeros_before}
            row |= {"op_spread": op.spread, "op_rms": op.log_rms, "op_dead": op.dead}
        row["op_nominal"] = _nominal(subject, node)
        kind = node.name().removesuffix("Backward0")
        site = Site(trace.name_of(call), "output", _order(subject, graph, node), kind)
        rows.append((node, site, row))
    return rows


def _shifts(
    subject: Subject, graph: Graph, weights: Sequence[WeightOp]
) -> dict[Node, tuple[str, float]]:
    """Ops that shift the signal by a parameter: the owner's name and log10 of shift to signal."""
    shifts = {}
    for one in weights:
        shifts[one.node] = (one.module, one.row.get("bias_ratio", -math.inf))
    names = {id(p): name for name, p in subject.model.named_parameters()}
    inside = set(graph.order)
    for node in graph.order:
        entering = [p for p in leaves(node, inside) if id(p) in names] if _is_norm(node) else []
        if len(entering) == 2:
            scale, shift = (float(p.detach().abs().median()) for p in entering)
            owner = names[id(entering[1])].rpartition(".")[0]
            shifts[node] = (owner, _log(shift) - _log(scale))
    return shifts


def _is_norm(node: Node) -> bool:
    return bool(NORM.search(node.name()))


def _norms(graph: Graph, shifts: dict[Node, tuple[str, float]]) -> list[Node]:
    return [node for node in graph.order[::-1] if node in shifts and _is_norm(node)]


def _norm_row(
    subject: Subject, graph: Graph, node: Node, name: str, ratio: float
) -> tuple[Site, dict[str, float]]:
    kind = node.name().removesuffix("Backward0")
    return Site(name, "norm", _order(subject, graph, node), kind), {"norm_shift": ratio}


def _feeder(graph: Graph, node: Node, shifts: dict[Node, tuple[str, float]]) -> str:
    """Name of the op with parameters that feeds a node; of several, that which shifts the most."""
    found, stack, seen = [], [child for _, child in graph.children[node]], {node}
    while stack:
        below = stack.pop()
        if below in shifts:
            found.append(shifts[below])
        elif below not in seen and PASSES.match(below.name()):
            stack += [child for _, child in graph.children[below]]
        seen.add(below)
    return max(found, key=lambda pair: pair[1], default=("", 0.0))[0]


def _order(subject: Subject, graph: Graph, node: Node) -> int:
    """Place of a node in forward order, on a scale shared by ops and nodes."""
    op = _op_of(subject, graph, node)
    return op.order if op else -1


def _weight_row(
    subject: Subject, graph: Graph, one: WeightOp, local: dict[Node, float]
) -> tuple[Site, dict[str, float]]:
    """Read a weight op: its scale by itself, and what it did to the signal and to the gradient."""
    row = one.row | {"weight_back": one.gain}
    row |= _what_follows(subject, graph, one, local)
    row["width"] = float(_width(one))
    kind = one.node.name().removesuffix("Backward0")
    return Site(one.module, "weight", _order(subject, graph, one.node), kind, _fan_in(one)), row


def _passage(subject: Subject, one: WeightOp) -> dict[str, float]:
    """Scale of a weight op, signal before and behind it, the typical bias against that signal."""
    size = 0.5 * math.log10(max(_fan_in(one), 1))
    count = max(1, one.weight.numel())
    row = {"weight_gain": subject.log_norm(one.weight) - 0.5 * math.log10(count) + size}
    if one.op is None:
        return row
    row |= {"weight_out": one.op.log_rms, "weight_spread": one.op.spread}
    before = [subject.trace.ops[s] for s in one.op.sources if s in subject.trace.ops]
    if before:
        row |= {"weight_in": before[0].log_rms, "weight_in_spread": before[0].spread}
    if before and one.bias is not None:
        typical = _log(float(one.bias.detach().abs().median()))
        row["bias_ratio"] = typical - (row["weight_gain"] + before[0].log_rms)
        row["bias_size"] = typical + size
    return row


def _what_follows(
    subject: Subject, graph: Graph, one: WeightOp, local: dict[Node, float]
) -> dict[str, float]:
    """Read what takes in a weight op's output: a norm, a dead or flat activation, nothing."""
    ops = subject.trace.ops
    after = graph.consumers(one.node)
    zeros = [ops[node].zeros for node in after if node in ops]
    dead = [ops[node].dead for node in after if node in ops]
    flat = [local[n] - _nominal(subject, n) for n in after if n in local and _has_gain(n)]
    read = [value for value in flat if not math.isnan(value)]
    return {
        "normed": float(any(NORM.search(node.name()) for node in after)),
        "feeds_zeros": max(zeros, default=0.0),
        "feeds_dead": max((d for d in dead if not math.isnan(d)), default=0.0),
        "feeds_passes": min(read, default=0.0),
    }


def _nominal(subject: Subject, node: Node) -> float:
    """log10 of the factor an activation passes of the gradient under N(0, 1); NaN: unknown."""
    if not ACTIVATION.search(node.name()):
        return math.nan
    call, op = subject.trace.call_of(node), subject.trace.ops.get(node)
    module = subject.trace.calls[call].module if call >= 0 else None
    known = nominal_gain(module, op.name if op else "")
    return 0.5 * _log(known.slope) if known else math.nan


def _width(one: WeightOp) -> int:
    """Number of units that a weight op feeds, counting each once over space."""
    if one.op is None or not one.op.shape:
        return int(one.weight.shape[0])
    channel = 1 if "Convolution" in one.node.name() and len(one.op.shape) > 2 else -1
    return int(one.op.shape[channel])


def _freedom(one: WeightOp) -> int:
    """Width n of a single draw's band: units of a layer; a kernel averages over its fan_in."""
    return max(_width(one), _fan_in(one)) if "Convolution" in one.node.name() else _width(one)


def _fan_in(one: WeightOp) -> int:
    """Weights that enter one unit: elements of the weight per output unit, whatever its layout."""
    if "Embedding" in one.node.name():
        return 1
    return max(1, one.weight.numel() // max(1, _width(one)))


def _totals(
    subject: Subject,
    graph: Graph,
    segments: list[Segment],
    units: list[list[Segment]],
    weights: Sequence[WeightOp],
) -> dict[str, object]:
    total = _sum(segment.gain for segment in segments)
    pooled = sum(s.gain for s in segments if s.role == "pool" and math.isfinite(s.gain))
    out = subject.outputs[0].detach()
    log_out = log10_norm(out)
    out_spread = spread(thin(out))
    in_norm, in_spread, in_within = _source_reading(subject, graph)
    collapse = _log(out_spread) - _log(in_spread)
    return {
        "total_decades": total - pooled,
        "pool_decades": pooled,
        "units": len(units),
        "gsc": total + in_norm - log_out,
        "nlc": total + in_norm - log_out - collapse,
        "spread_in": in_spread,
        "spread_out": out_spread,
        "within_in": in_within,
        "within_out": within(out),
        "out_log_rms": log_out - 0.5 * math.log10(max(1, out.numel())),
        "widths": [_freedom(one) for segment in segments for one in segment.weights[:1]][1:],
        "opened": sum(segment.opened for segment in segments),
        "trunk": len(graph.trunk),
        "weights": len(weights),
        "of_loss": out.dim() == 0 and subject.outputs[0] is subject.loss_value,
        **{role: _sum(s.gain for s in segments if s.role == role) for role in ROLES},
    }


def _sum(gains: Iterable[float]) -> float:
    """Sum of the gains that were read; behind a broken gradient nothing was."""
    return sum(gain for gain in gains if not math.isnan(gain))


def _source_reading(subject: Subject, graph: Graph) -> tuple[float, float, float]:
    for tensor in subject.trace.inputs + subject.trace.entries:
        if sink_node(tensor) is graph.sink:
            signal = tensor.detach()
            return log10_norm(signal), spread(thin(signal)), within(signal)
    return math.nan, math.nan, math.nan


def _log(value: float) -> float:
    return math.log10(value) if value > 0 else math.nan if math.isnan(value) else -math.inf
