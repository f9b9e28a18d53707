"""A Trace hears every op, knows in which module call it ran, and is gone afterwards."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.checkpoint import checkpoint

from steadygrad.probe.graph import reachable
from steadygrad.probe.trace import Op, Trace, listen, log10_norm, sequence_number, spread, thin


class Runs(nn.Module):
    """A module made of a function of itself and its inputs."""

    def __init__(self, run: Callable[..., Any], **children: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(self, *args, **kwargs)


def heard(model: nn.Module, *args: Any, **kwargs: Any) -> tuple[Trace, Any]:
    with listen(model) as trace:
        out = model(*args, **kwargs)
    return trace, out


def own(trace: Trace) -> dict[Node, Op]:
    """Ops of the model; the trace puts a clone of its own behind each opened input."""
    return {node: op for node, op in trace.ops.items() if op.name != "clone"}


def ops(trace: Trace) -> list[tuple[str, str]]:
    return [(op.name, trace.name_of(op.call)) for op in own(trace).values()]


def hooks(model: nn.Module) -> list[int]:
    return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]


def owners(trace: Trace, out: Tensor) -> set[str]:
    assert out.grad_fn is not None
    inner = [n for n in reachable(out.grad_fn) if "AccumulateGrad" not in n.name()]
    return {trace.name_of(trace.call_of(node)) for node in inner}


# --- Which call an op belongs to -----------------------------------------------------------------


def test_an_op_belongs_to_the_innermost_call() -> None:
    inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    trace, _ = heard(nn.Sequential(inner, nn.Linear(4, 2)), torch.ones(3, 4))
    assert ops(trace) == [("linear", "0.0"), ("relu", "0.1"), ("linear", "1")]
    assert [call.name for call in trace.calls] == ["", "0", "0.0", "0.1", "1"]


def test_a_function_belongs_to_the_call_that_ran_it() -> None:
    model = Runs(lambda m, x: functional.relu(m.layer(x)) + 1, layer=nn.Linear(4, 4))
    trace, _ = heard(model, torch.ones(3, 4))
    assert ops(trace) == [("linear", "layer"), ("relu", ""), ("add", "")]


def test_a_shared_module_is_a_call_each_time() -> None:
    model = Runs(lambda m, x: m.layer(m.layer(x)), layer=nn.Linear(4, 4))
    trace, _ = heard(model, torch.ones(3, 4))
    assert [call.name for call in trace.calls] == ["", "layer", "layer"]
    assert [op.call for op in own(trace).values()] == [1, 2]


def test_a_module_known_by_two_names_is_called_by_the_first() -> None:
    layer = nn.Linear(4, 4)
    trace, _ = heard(nn.Sequential(layer, nn.ReLU(), layer), torch.ones(3, 4))
    assert [name for _, name in ops(trace)] == ["0", "1", "0"]


def test_nodes_inside_a_composite_function_belong_to_its_call() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(4, 2), nn.Linear(4, 4))
    attend = Runs(lambda m, x: m[2](m[1](*[m[0](x)] * 3)[0]), **dict(model.named_children()))
    attend.__class__.__getitem__ = lambda m, i: getattr(m, str(i))  # type: ignore[attr-defined]
    trace, out = heard(attend, torch.randn(5, 3, 4))
    assert owners(trace, out) >= {"0", "1", "2"}
    assert all(name in {"", "0", "1", "1.out_proj", "2"} for name in owners(trace, out))


def test_without_sequence_numbers_such_nodes_belong_to_no_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(torch._C._autograd, "_get_sequence_nr")
    assert sequence_number() is None
    trace, out = heard(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.ones(3, 4))
    assert ops(trace) == [("linear", "0"), ("relu", "1")]
    assert owners(trace, out) <= {"", "0", "1"}


def test_the_private_sequence_number_exists_in_this_torch() -> None:
    assert sequence_number() is not None, f"torch {torch.__version__} hides sequence numbers"


def test_the_call_around_several_calls_is_found() -> None:
    inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    trace, _ = heard(nn.Sequential(inner, nn.Linear(4, 2)), torch.ones(3, 4))
    assert trace.name_of(trace.shared_call(iter([2, 3]))) == "0"
    assert trace.name_of(trace.shared_call(iter([2, 4]))) == ""
    assert trace.shared_call(iter([])) == -1


def test_a_line_of_the_users_is_remembered() -> None:
    trace, _ = heard(Runs(lambda m, x: x.exp()), torch.ones(2, 2))
    (op,) = own(trace).values()
    assert op.line[0] == __file__


# --- Inputs --------------------------------------------------------------------------------------


def as_dict(m: Runs, batch: dict[str, Tensor]) -> Tensor:
    out: Tensor = m.layer(batch["x"]) + batch["mask"]
    return out


PACKED = pack_sequence([torch.randn(3, 4), torch.randn(2, 4)])
INPUTS: dict[str, tuple[Callable[..., Any], tuple[Any, ...], int]] = {
    "a tensor": (lambda m, x: m.layer(x), (torch.ones(2, 4),), 1),
    "two tensors": (lambda m, x, y: m.layer(x) + y, (torch.ones(2, 4), torch.ones(2, 4)), 2),
    "a dict": (as_dict, ({"x": torch.ones(2, 4), "mask": torch.ones(2, 1)},), 2),
    "a list": (lambda m, xs: m.layer(xs[0]), ([torch.ones(2, 4)],), 1),
    "a packed sequence": (lambda m, x: m.layer(x.data), (PACKED,), 1),
    "integers beside": (lambda m, x, i: m.layer(x)[i], (torch.ones(2, 4), torch.tensor([0])), 1),
}


@pytest.mark.parametrize("name", INPUTS)
def test_every_floating_input_gets_a_gradient(name: str) -> None:
    run, inputs, count = INPUTS[name]
    trace, out = heard(Runs(run, layer=nn.Linear(4, 4)), *inputs)
    assert len(trace.inputs) == count
    gradients = torch.autograd.grad(out.sum(), trace.inputs, allow_unused=True)
    assert gradients[0] is not None


@pytest.mark.parametrize("name", INPUTS)
def test_the_users_inputs_stay_without_gradient(name: str) -> None:
    run, inputs, _ = INPUTS[name]
    heard(Runs(run, layer=nn.Linear(4, 4)), *inputs)
    first = inputs[0]["x"] if isinstance(inputs[0], dict) else inputs[0]
    first = first.data if isinstance(first, PackedSequence) else first
    assert isinstance(first, list) or (not first.requires_grad and first.grad_fn is None)


def test_keyword_inputs_are_opened_too() -> None:
    trace, _ = heard(Runs(lambda m, x: m.layer(x), layer=nn.Linear(4, 4)), x=torch.ones(2, 4))
    assert len(trace.inputs) == 1


def test_data_that_a_parameter_scales_in_place_is_an_entry() -> None:
    model = Runs(lambda m, i: i.float().mul_(m.scale))
    model.scale = nn.Parameter(torch.ones(3))
    trace, out = heard(model, torch.tensor([1, 2, 3]))
    assert [t.grad_fn for t in trace.entries] == [out.grad_fn]


def test_the_output_of_an_embedding_is_an_entry() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 2))
    trace, _ = heard(model, torch.tensor([0, 1]))
    assert trace.inputs == []
    assert [t.grad_fn is not None and t.grad_fn.name() for t in trace.entries] == [
        "EmbeddingBackward0"
    ]


def test_an_input_that_already_requires_grad_is_used_as_it_is() -> None:
    x = torch.ones(2, 4, requires_grad=True)
    trace, out = heard(nn.Linear(4, 4), x)
    assert trace.inputs == []
    assert torch.autograd.grad(out.sum(), x)[0].shape == x.shape


def test_a_model_may_ask_for_gradients_of_its_input() -> None:
    def forward(m: Runs, x: Tensor) -> Tensor:
        x.requires_grad = True
        x.requires_grad_()
        energy = m.layer(x).sum()
        (force,) = torch.autograd.grad(energy, x, create_graph=True)
        return force

    model = Runs(forward, layer=nn.Sequential(nn.Linear(4, 4), nn.Tanh()))
    trace, out = heard(model, torch.randn(3, 4))
    assert out.grad_fn is not None
    assert len(trace.inputs) == 1


def test_without_gradients_nothing_is_opened() -> None:
    with torch.no_grad():
        trace, out = heard(nn.Linear(4, 4), torch.ones(2, 4))
    assert trace.inputs == []
    assert trace.ops == {}
    assert out.grad_fn is None


# --- Ops of every kind ---------------------------------------------------------------------------


@pytest.mark.parametrize("inplace", [False, True])
def test_an_in_place_op_is_heard_like_another(inplace: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=inplace), nn.Linear(4, 4))
    trace, _ = heard(model, torch.randn(6, 4))
    first, relu, last = own(trace).values()
    nodes = list(own(trace))
    assert relu.sources == (nodes[0],)
    assert last.sources == (nodes[1],)
    assert relu.zeros > 0
    assert first.zeros == relu.zeros_before == 0


def test_an_in_place_sum_is_no_entry_of_data() -> None:
    model = Runs(lambda m, x: m.layer(x).add_(torch.ones(4)), layer=nn.Linear(4, 4))
    trace, _ = heard(model, torch.ones(2, 4))
    assert trace.entries == []


@pytest.mark.parametrize("inplace", [False, True])
def test_in_place_ops_on_the_input_are_legal_and_leave_it_alone(inplace: bool) -> None:
    x = -torch.ones(2, 4)
    trace, out = heard(nn.Sequential(nn.LeakyReLU(inplace=inplace)), x)
    assert torch.equal(x, -torch.ones(2, 4))
    assert torch.autograd.grad(out.sum(), trace.inputs)[0].shape == x.shape


def test_an_op_whose_output_is_a_view_is_heard() -> None:
    trace, out = heard(nn.Linear(4, 3), torch.randn(2, 5, 4))
    (op,) = own(trace).values()
    assert (op.name, op.shape) == ("linear", (2, 5, 3))
    assert math.isclose(op.log_norm, math.log10(out.detach().norm()), abs_tol=1e-6)
    assert not math.isnan(op.within)


def test_the_parts_of_a_split_are_heard() -> None:
    model = Runs(lambda m, x: m.layer(x).chunk(2, dim=-1)[0] * 2, layer=nn.Linear(4, 4))
    trace, _ = heard(model, torch.ones(2, 4))
    assert [name for name, _ in ops(trace)] == ["linear", "chunk", "mul"]


def test_a_checkpointed_part_is_heard_and_runs_backward() -> None:
    part = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    model = Runs(lambda m, x: m.head(checkpoint(m.part, x, use_reentrant=False)), part=part)
    model.head = nn.Linear(4, 2)
    trace, out = heard(model, torch.randn(3, 4))
    assert ops(trace) == [("linear", "part.0"), ("relu", "part.1"), ("linear", "head")]
    assert torch.autograd.grad(out.sum(), trace.inputs)[0].any()
    assert len(own(trace)) == 3


def test_the_outermost_results_are_kept() -> None:
    layer = nn.Linear(4, 4)
    with listen(layer) as trace:
        first, second = layer(torch.ones(1, 4)), layer(torch.ones(2, 4))
    assert trace.results == [first, second]


# --- Hooks ---------------------------------------------------------------------------------------


def test_no_hook_remains() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    model[0].register_forward_hook(lambda *_: None)
    before = hooks(model)
    heard(model, torch.ones(2, 4))
    assert hooks(model) == before


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_no_hook_remains_after_an_exception(error: type[BaseException]) -> None:
    def fail(m: Runs, x: Tensor) -> Tensor:
        raise error

    model = nn.Sequential(nn.Linear(4, 4), Runs(fail))
    with pytest.raises(error):
        heard(model, torch.ones(2, 4))
    assert hooks(model) == [0, 0, 0]
    assert nn.Linear(4, 4)(torch.ones(1, 4)).grad_fn is not None


def test_a_call_that_raised_and_was_caught_is_left() -> None:
    def fail(m: Runs, x: Tensor) -> Tensor:
        raise ZeroDivisionError

    def forward(m: Runs, x: Tensor) -> Tensor:
        with contextlib.suppress(ZeroDivisionError):
            m.risky(x)
        out: Tensor = m.layer(x).exp()
        return out

    model = Runs(forward, risky=Runs(fail), layer=nn.Linear(4, 4))
    trace, _ = heard(model, torch.ones(2, 4))
    assert ops(trace) == [("linear", "layer"), ("exp", "")]


# --- Readings ------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(st.floats(-37, 37), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_the_norm_is_exact_over_the_whole_range(exponent: float, dtype: torch.dtype) -> None:
    values = torch.linspace(0.5, 1.5, 7, dtype=torch.float64) * 10.0**exponent
    given = values.to(dtype)
    slow = math.log10(math.hypot(*given.double().tolist()))
    assert math.isclose(log10_norm(given), slow, abs_tol=1e-6)  # float32 sums 7 squares


@pytest.mark.parametrize(
    ("values", "norm"),
    [
        ([0.0, 0.0], -math.inf),
        ([1.0, math.nan], math.inf),
        ([1.0, math.inf], math.inf),
        ([], -math.inf),
        ([3e38, 3e38], math.log10(3e38) + math.log10(2) / 2),
        ([1e-45, 0.0], math.log10(1.401298464324817e-45)),  # the smallest float32
    ],
)
def test_the_norm_of_extremes(values: list[float], norm: float) -> None:
    assert log10_norm(torch.tensor(values)) == pytest.approx(norm, abs=1e-6)


def test_spread_is_one_for_unrelated_samples_and_zero_for_equal_ones() -> None:
    torch.manual_seed(0)
    assert spread(torch.randn(32, 4096)) == pytest.approx(1.0, abs=0.02)
    assert spread(torch.ones(4, 8)) == 0.0
    assert math.isnan(spread(torch.randn(1, 8)))
    assert math.isnan(spread(torch.zeros(4, 8)))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_spread_does_not_depend_on_the_scale(scale: float) -> None:
    rows = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    assert spread(rows * scale) == pytest.approx(spread(rows), rel=1e-5)


@pytest.mark.parametrize(
    "shape", [(), (5,), (1, 3), (200, 7), (1, 1, 9), (4, 3, 600, 600), (2, 0, 3)]
)
def test_thinning_keeps_few_rows_and_elements(shape: tuple[int, ...]) -> None:
    rows = thin(torch.zeros(shape))
    assert rows.dim() == 2
    assert rows.numel() <= 2 * (1 << 16)


@pytest.mark.parametrize(("alive", "dead"), [(1, 0.9), (5, 0.0)])
def test_zeros_and_dead_units_of_a_relu(alive: int, dead: float) -> None:
    layer = nn.Linear(10, 10, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.diag(torch.tensor([1.0] * alive + [-1.0] * (10 - alive))))
    trace, _ = heard(nn.Sequential(layer, nn.ReLU()), torch.rand(8, 10) + 0.1)
    _, relu = own(trace).values()
    assert relu.zeros == pytest.approx(1 - alive / 10)
    assert relu.dead == pytest.approx(dead)  # below 85 % zeros it is not counted


def test_a_broken_output_reads_inf() -> None:
    trace, _ = heard(Runs(lambda m, x: x.log()), torch.tensor([[-1.0], [1.0]]))
    (op,) = own(trace).values()
    assert op.log_norm == math.inf
    assert math.isnan(op.spread)


def test_a_mask_of_minus_infinity_reads_inf_and_its_softmax_does_not() -> None:
    mask = torch.tensor([0.0, -math.inf])
    trace, _ = heard(Runs(lambda m, x: (x + mask).softmax(-1)), torch.ones(3, 2))
    masked, attention = own(trace).values()
    assert masked.log_norm == math.inf
    assert np.isfinite(attention.log_norm)


def test_listening_changes_no_result() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.GELU(), nn.Dropout(0.5))
    x = torch.randn(4, 3, 8, 8)
    torch.manual_seed(1)
    plain = model(x)
    torch.manual_seed(1)
    _, out = heard(model, x)
    assert torch.equal(plain, out)


def test_nodes_are_keys_that_live_as_long_as_the_trace() -> None:
    trace, _ = heard(nn.Linear(4, 4), torch.ones(1, 4))
    assert all(isinstance(node, Node) for node in trace.ops)
