"""A guard at its post: what it sees and remembers, what it restores, and what it refuses."""

from __future__ import annotations

import copy
import io
import math
import warnings
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import steadygrad as sg

NAN, INF = math.nan, math.inf


def network(*, norm: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    between: nn.Module = nn.BatchNorm1d(16) if norm else nn.Tanh()
    return nn.Sequential(nn.Linear(8, 16), between, nn.Linear(16, 1))


def batch(seed: int = 1, size: int = 32) -> Tensor:
    return torch.randn(size, 8, generator=torch.Generator().manual_seed(seed))


def backward(model: nn.Module, x: Tensor | None = None, *, times: float = 1.0) -> None:
    x = batch() if x is None else x
    ((model(x) - 3 * x[:, :1]).square().mean() * times).backward()


def step(model: nn.Module, optimizer: torch.optim.Optimizer, *, times: float = 1.0) -> None:
    optimizer.zero_grad()
    backward(model, times=times)
    optimizer.step()


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, *times: float) -> None:
    for one in times:
        step(model, optimizer, times=one)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([one.detach().flatten().clone() for one in model.parameters()])


def adamw(model: nn.Module, **settings: Any) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=0.01, **settings)


# --- What it remembers ----------------------------------------------------------------------------


def test_an_event_says_what_was_done_to_a_step_and_by_whom() -> None:
    model = network()
    optimizer = adamw(model, fused=True)
    handle = sg.guard(optimizer, sg.skip_nonfinite(), sg.clip_norm(0.5), model=model)
    step(model, optimizer)
    step(model, optimizer, times=NAN)
    clipped, skipped = handle.history
    assert (clipped.step, clipped.clipped, clipped.skipped) == (0, True, False)
    assert clipped.by == ("clip_norm",)
    assert clipped.threshold == 0.5
    assert clipped.norm_after == pytest.approx(0.5, rel=1e-5)
    assert sum(share for _, share in clipped.suspects) <= 1
    assert {name for name, _ in clipped.suspects} <= dict(model.named_parameters()).keys()
    assert (skipped.step, skipped.clipped, skipped.skipped) == (1, False, True)
    assert skipped.by == ("skip_nonfinite",)
    assert skipped.suspects[0][0] == "0.weight"
    assert handle.skipped is True


def test_the_suspect_is_the_parameter_that_is_not_finite_before_clipping_spreads_it() -> None:
    model = network()
    optimizer = adamw(model)
    handle = sg.guard(optimizer, sg.skip_nonfinite(), sg.clip_norm(1.0), model=model)
    backward(model)
    model[2].weight.grad[0, 3] = INF
    optimizer.step()
    ((name, share),) = handle.history[0].suspects
    assert name == "2.weight"
    assert math.isnan(share)
    assert model[2].weight.grad[0, 3] == INF
    assert torch.isfinite(model[0].weight.grad).all(), "the evidence is left as it was"


def test_the_largest_share_of_the_square_comes_first() -> None:
    a, b = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))
    a.grad, b.grad = torch.full((4,), 1.0), torch.full((4,), 3.0)
    optimizer = torch.optim.SGD([a, b], 0.1)
    handle = sg.guard(optimizer, sg.clip_norm(0.1))
    optimizer.step()
    assert handle.history[0].suspects == (
        ("param_groups[0].params[1]", pytest.approx(0.9)),
        ("param_groups[0].params[0]", pytest.approx(0.1)),
    )


def test_parameters_given_with_names_keep_them() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.named_parameters(), 0.1)
    handle = sg.guard(optimizer, sg.clip_norm(1e-3))
    step(model, optimizer)
    assert handle.history[0].suspects[0][0] in dict(model.named_parameters())


def test_the_history_is_bounded_and_the_counts_are_not() -> None:
    model = network()
    optimizer = adamw(model)
    handle = sg.guard(optimizer, sg.clip_norm(0.1), keep=3)
    for _ in range(5):
        step(model, optimizer)
    assert [one.step for one in handle.history] == [2, 3, 4]
    assert (handle.history.steps, handle.history.clipped) == (5, 5)
    assert [one.step for one in handle.history[1:]] == [3, 4]


def test_the_norms_of_parameters_are_kept_for_the_last_events_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("steadygrad.guards.history.NUMBERS", 8)  # two events of four parameters
    model = network()
    optimizer = adamw(model)
    handle = sg.guard(optimizer, sg.clip_norm(0.1), keep=4)
    steps(model, optimizer, *[1.0] * 6)
    assert [one.norms is None for one in handle.history] == [True, True, False, False]


def test_the_suggestion_says_what_a_threshold_would_have_clipped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    handle = sg.guard(optimizer, sg.clip_norm(1.0))
    assert "no finite gradient norm" in handle.suggest()
    for _ in range(120):
        step(model, optimizer)
    text = handle.suggest()
    assert "in use now" in text
    assert "100.0%" in text
    assert "100% of 120 steps were clipped" in text
    assert text in capsys.readouterr().out
    assert all(len(line) <= 100 for line in text.splitlines())
    assert [one.name for one in handle.report().findings] == ["constant-clip"]


# --- What it leaves as it was ---------------------------------------------------------------------


@pytest.mark.parametrize("found", [None, "missing", 2.0])
def test_the_attributes_of_the_protocol_are_restored_exactly(found: Any) -> None:
    model = network()
    optimizer = adamw(model, fused=True)
    if found != "missing":
        optimizer.grad_scale = None if found is None else torch.tensor(found)
        optimizer.found_inf = None if found is None else torch.tensor(0.0)
    before = {name: vars(optimizer).get(name, "missing") for name in ("grad_scale", "found_inf")}
    sg.guard(optimizer, sg.skip_nonfinite(), sg.clip_norm(0.1), strict=True)
    for times in (1.0, NAN):
        step(model, optimizer, times=times)
        after = {name: vars(optimizer).get(name, "missing") for name in before}
        assert all(after[name] is before[name] for name in before)


@pytest.mark.parametrize("fused", [True, False])
def test_a_skipped_step_changes_neither_parameters_nor_state(fused: bool) -> None:
    model = network()
    optimizer = adamw(model, fused=fused)
    sg.guard(optimizer, sg.skip_nonfinite(), strict=True)
    step(model, optimizer)
    before, state = flat(model), copy.deepcopy(optimizer.state_dict())
    step(model, optimizer, times=NAN)
    assert torch.equal(flat(model), before)
    for one, kept in zip(
        optimizer.state_dict()["state"].values(), state["state"].values(), strict=True
    ):
        assert all(torch.equal(one[key], kept[key]) for key in kept)
    assert model[0].weight.grad is not None
    assert model[0].weight.grad.isnan().any()


def test_a_removed_guard_leaves_nothing_behind() -> None:
    model = network()
    optimizer = adamw(model, fused=True)
    before = set(vars(optimizer))
    with sg.guard(optimizer) as handle:
        step(model, optimizer, times=NAN)
    assert set(vars(optimizer)) == before
    assert not optimizer._optimizer_step_pre_hooks
    step(model, optimizer)
    assert len(handle.history) == 1
    sg.guard(optimizer)


def test_a_step_that_raises_gives_the_gradients_back() -> None:
    class Raises(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            raise KeyError("mine")

    model = network()
    optimizer = Raises(model.parameters(), 0.1)
    handle = sg.guard(optimizer)
    backward(model, times=NAN)
    with pytest.raises(KeyError, match="mine"):
        optimizer.step()
    handle.remove()
    assert model[0].weight.grad is not None


def test_the_learning_rate_is_changed_within_the_step_only() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    sg.guard(optimizer, sg.skip_nonfinite(), sg.lr_backoff(0.5, recover=1000), strict=True)
    step(model, optimizer, times=NAN)
    scheduler.step()
    before = flat(model)
    backward(model)  # on top of NaN gradients would be NaN
    optimizer.zero_grad()
    backward(model)
    gradient = torch.cat([one.grad.flatten() for one in model.parameters()])
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.09)
    assert torch.allclose(flat(model), before - 0.045 * gradient, rtol=1e-6)


def test_running_statistics_survive_a_batch_that_is_skipped() -> None:
    model = network(norm=True)
    optimizer = adamw(model, fused=True)
    sg.guard(optimizer, sg.skip_nonfinite(), model=model, strict=True)
    step(model, optimizer)
    before = {name: one.clone() for name, one in model.named_buffers()}
    optimizer.zero_grad()
    backward(model, batch() * INF)
    assert not torch.isfinite(model[1].running_mean).all()
    optimizer.step()
    for name, one in model.named_buffers():
        assert torch.equal(one, before[name]), name
    step(model, optimizer)
    assert model[1].num_batches_tracked == 2


# --- Loops that differ ----------------------------------------------------------------------------


def test_a_closure_is_judged_after_it_has_run() -> None:
    model = network()
    optimizer = adamw(model)
    handle = sg.guard(optimizer, sg.skip_nonfinite(), sg.clip_norm(0.1), strict=True)

    def closure() -> float:
        optimizer.zero_grad()
        backward(model)
        return 7.0

    assert optimizer.step(closure) == 7.0
    assert optimizer.step(closure=closure) == 7.0
    assert [one.clipped for one in handle.history] == [True, True]


def test_accumulated_gradients_are_judged_once_and_whole() -> None:
    model = network()
    optimizer = adamw(model)
    handle = sg.guard(optimizer, sg.clip_norm(1e9), strict=True)
    for _ in range(2):
        optimizer.zero_grad()
        for _ in range(4):
            backward(model, times=0.25)
        whole = torch.cat([one.grad.flatten() for one in model.parameters()]).norm()
        optimizer.step()
    assert len(handle.history) == 2
    assert handle.history[-1].norm == pytest.approx(float(whole), rel=1e-6)


def test_groups_are_clipped_together_and_optimizers_each_alone() -> None:
    model = network()
    first = torch.optim.SGD(
        [{"params": model[0].parameters()}, {"params": [model[2].weight], "lr": 0.2}], 0.1
    )
    second = torch.optim.SGD([model[2].bias], 0.1)
    one, other = sg.guard(first, sg.clip_norm(0.1)), sg.guard(second, sg.clip_norm(0.1))
    backward(model)
    grads = [p.grad for p in (*model[0].parameters(), model[2].weight)]
    whole = float(torch.cat([grad.flatten() for grad in grads]).norm())
    first.step()
    second.step()
    assert one.history[0].norm == pytest.approx(whole, rel=1e-6)
    assert float(torch.cat([grad.flatten() for grad in grads]).norm()) == pytest.approx(0.1)
    assert other.history[0].norm_after == pytest.approx(0.1, rel=1e-4)


def test_a_group_that_is_added_later_is_guarded_too() -> None:
    model, more = network(), nn.Parameter(torch.ones(3))
    optimizer = adamw(model)
    handle = sg.guard(optimizer, sg.skip_nonfinite(), strict=True)
    step(model, optimizer)
    optimizer.add_param_group({"params": [more]})
    optimizer.zero_grad()
    backward(model)
    more.grad = torch.tensor([NAN, 0.0, 0.0])
    optimizer.step()
    assert handle.history[1].skipped
    assert handle.history[1].suspects[0][0] == "param_groups[1].params[0]"
    assert torch.equal(more.detach(), torch.ones(3))


def test_a_step_without_any_gradient_is_no_event() -> None:
    model = network()
    optimizer = adamw(model)
    handle = sg.guard(optimizer, strict=True)
    optimizer.step()
    assert not handle.history
    assert handle.skipped is False


def test_sparse_gradients_are_clipped_as_dense_ones_are() -> None:
    def moved(sparse: bool) -> Tensor:
        torch.manual_seed(0)
        table = nn.Embedding(10, 4, sparse=sparse)
        optimizer = torch.optim.SGD(table.parameters(), 1.0)
        sg.guard(optimizer, sg.skip_nonfinite(), sg.clip_norm(0.5), strict=True)
        before = table.weight.detach().clone()
        table(torch.tensor([1, 1, 3, 7])).square().sum().backward()
        optimizer.step()
        return table.weight.detach() - before

    assert torch.allclose(moved(True), moved(False), rtol=1e-6, atol=0)
    assert float(moved(True).norm()) == pytest.approx(0.5, rel=1e-5)


def test_sparse_gradients_that_are_not_finite_are_skipped() -> None:
    table = nn.Embedding(10, 4, sparse=True)
    optimizer = torch.optim.SparseAdam(table.parameters(), 1.0)
    handle = sg.guard(optimizer, sg.skip_nonfinite(), sg.clip_value(1.0), strict=True)
    before = table.weight.detach().clone()
    (table(torch.tensor([1, 3])) * NAN).sum().backward()
    optimizer.step()
    assert handle.history[0].skipped
    assert torch.equal(table.weight.detach(), before)


@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.long)])
def test_a_compiled_model_and_a_compiled_step_are_guarded(backend: str) -> None:
    def trained(compiled: bool) -> tuple[Tensor, int]:
        torch._dynamo.reset()
        model = network()
        optimizer = adamw(model)
        handle = sg.guard(optimizer, sg.skip_nonfinite(), sg.clip_norm(0.5), strict=True)
        run = torch.compile(model, backend=backend) if compiled else model
        stepped = torch.compile(optimizer.step, backend=backend) if compiled else optimizer.step
        for times in (1.0, NAN, 1.0):
            optimizer.zero_grad()
            backward(run, times=times)
            stepped()
        return flat(model), handle.history.skipped

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.compile's own
        (one, skips), (other, _) = trained(True), trained(False)
    assert skips == 1
    # a compiled Adam keeps its step count, and the powers of beta, in float32
    assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("off", [None, False])
def test_an_optimizer_that_is_fused_no_longer_is_guarded_in_place(off: bool | None) -> None:
    model = network()
    optimizer = adamw(model, fused=True)
    handle = sg.guard(optimizer, sg.skip_nonfinite(), sg.clip_norm(0.1), strict=True)
    step(model, optimizer)
    optimizer.param_groups[0]["fused"] = off
    steps(model, optimizer, 1.0, NAN)
    assert [one.skipped for one in handle.history] == [False, False, True]


def test_a_step_that_calls_its_parents_step_is_judged_once() -> None:
    class Mine(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    model = network()
    torch.optim.SGD(model.parameters(), 0.1)  # torch wraps the parent's step too
    optimizer = Mine(model.parameters(), 0.1)
    handle = sg.guard(optimizer, sg.skip_nonfinite(), sg.clip_norm(0.1), strict=True)
    step(model, optimizer)
    assert handle.history[0].norm > 0.2, "as it was before clipping"
    step(model, optimizer, times=NAN)
    assert handle.skipped is True
    assert [one.step for one in handle.history] == [0, 1]


def test_a_buffer_that_forward_replaces_is_taken_back_by_name() -> None:
    class Running(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 1)
            self.register_buffer("mean", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(x)
            self.mean = 0.9 * self.mean + y.detach().mean()
            return y

    model = Running()
    optimizer = adamw(model)
    handle = sg.guard(optimizer, sg.skip_nonfinite(), model=model, strict=True)
    backward(model)
    optimizer.step()
    before = model.mean.clone()
    optimizer.zero_grad()
    backward(model, batch() * NAN)
    optimizer.step()
    assert handle.skipped
    assert torch.equal(model.mean, before)


def test_finite_gradients_of_any_size_are_clipped() -> None:
    for dtype, size in ((torch.float32, 2e38), (torch.float64, 1e200)):
        for fused in (False, True):
            one = nn.Parameter(torch.zeros(4, dtype=dtype))
            one.grad = torch.full((4,), size, dtype=dtype)
            optimizer = torch.optim.SGD([one], 1.0, fused=fused)
            handle = sg.guard(optimizer, sg.skip_nonfinite(), sg.clip_norm(1.0), strict=True)
            optimizer.step()
            assert handle.history[0].norm == pytest.approx(2 * size)
            assert one.tolist() == pytest.approx([-0.5] * 4), (dtype, fused)


def test_an_interrupted_step_does_not_give_old_gradients_back() -> None:
    class Interrupted(torch.optim.SGD):
        interrupted = False

        def step(self, closure: Any = None) -> Any:
            if self.interrupted:
                raise KeyboardInterrupt
            return super().step(closure)

    model = network()
    optimizer = Interrupted(model.parameters(), 0.1)
    handle = sg.guard(optimizer, sg.skip_nonfinite(), strict=True)
    backward(model, times=NAN)
    optimizer.interrupted = True
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    optimizer.interrupted = False
    step(model, optimizer)
    assert [one.skipped for one in handle.history] == [False]


# --- Long runs ------------------------------------------------------------------------------------


def test_training_stops_when_all_steps_are_skipped_and_says_who_is_first() -> None:
    model = network()
    optimizer = adamw(model)
    handle = sg.guard(optimizer, sg.skip_nonfinite(), sg.stop_after(3), model=model)
    step(model, optimizer)
    with pytest.raises(sg.TrainingStopped, match=r"3 steps from step 1 .* led by 0\.weight") as why:
        steps(model, optimizer, *[NAN] * 5)
    assert [one.step for one in why.value.events] == [1, 2, 3]
    assert handle.history.skipped == 3
    assert model[0].weight.grad is not None


@pytest.mark.parametrize("replay", [False, True])
@pytest.mark.parametrize("offload", [False, True])
def test_a_rollback_restores_weights_state_buffers_scheduler_and_random_numbers_if_asked(
    offload: bool, replay: bool
) -> None:
    model = network(norm=True)
    optimizer = adamw(model)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    back = sg.rollback(after=2, every=3, others=[scheduler], offload=offload, replay=replay)
    sg.guard(optimizer, sg.skip_nonfinite(), back, model=model, strict=True)
    for number in range(5):
        step(model, optimizer)
        if number == 2:  # the third step that is made: a snapshot is taken within
            kept = flat(model), scheduler.state_dict(), torch.get_rng_state()
            state = copy.deepcopy(optimizer.state_dict()["state"])
        scheduler.step()
        torch.rand(3)
    with pytest.warns(RuntimeWarning, match="went back to the weights of step 2"):
        steps(model, optimizer, *[NAN] * 2)
    assert back.steps == [2]
    assert torch.equal(flat(model), kept[0])
    assert scheduler.last_epoch == 2
    assert torch.equal(torch.get_rng_state(), kept[2]) is replay
    for key, one in optimizer.state_dict()["state"].items():
        assert all(torch.equal(one[name], state[key][name]) for name in one)
    step(model, optimizer)


def test_a_rollback_over_a_group_that_was_added_begins_anew() -> None:
    model, more = network(), nn.Parameter(torch.ones(3))
    optimizer = adamw(model)
    back = sg.rollback(after=1, every=100)
    sg.guard(optimizer, sg.skip_nonfinite(), back, strict=True)
    step(model, optimizer)
    optimizer.add_param_group({"params": [more]})
    before = flat(model)
    step(model, optimizer, times=NAN)
    assert torch.equal(flat(model), before)
    with pytest.warns(RuntimeWarning, match="went back to the weights of step 1"):
        step(model, optimizer, times=NAN)


def test_a_second_rollback_goes_further_back() -> None:
    model = network()
    optimizer = adamw(model)
    back = sg.rollback(after=1, every=2, keep=2)
    sg.guard(optimizer, sg.skip_nonfinite(), back, model=model, strict=True)
    for _ in range(4):
        step(model, optimizer)
    with pytest.warns(RuntimeWarning, match="went back"):
        steps(model, optimizer, *[NAN] * 3)
    assert back.steps == [3, 1, 1]


def test_the_ladder_brings_a_run_through_trouble_and_stops_one_that_is_lost() -> None:
    model = network()
    optimizer = adamw(model)
    handle = sg.guard(optimizer, *sg.ladder(5.0, patience=2), model=model, strict=True)
    for _ in range(80):
        step(model, optimizer)
    with pytest.warns(RuntimeWarning, match="went back"):
        steps(model, optimizer, *[NAN] * 2)
    for _ in range(20):
        step(model, optimizer)
    assert torch.isfinite(flat(model)).all()
    assert handle.history.skipped == 2
    with pytest.warns(RuntimeWarning), pytest.raises(sg.TrainingStopped):
        steps(model, optimizer, *[NAN] * 30)


@pytest.mark.parametrize(
    "make",
    [
        lambda: (sg.skip_nonfinite(), sg.clip_quantile(0.5, warmup=3)),
        lambda: (sg.skip_nonfinite(), sg.clip_zscore(1.0, warmup=3)),
        lambda: (sg.skip_nonfinite(), sg.clip_adagc(warmup=3)),
        lambda: (sg.skip_nonfinite(), sg.skip_outlier(window=8), sg.lr_backoff(recover=20)),
    ],
)
def test_a_resumed_run_goes_on_bit_by_bit(make: Any) -> None:
    def trained(*, cut: bool) -> Tensor:
        model = network()
        optimizer = adamw(model, fused=True)
        handle = sg.guard(optimizer, *make(), strict=True)
        for number in range(30):
            if cut and number == 15:
                file = io.BytesIO()
                torch.save([one.state_dict() for one in (model, optimizer, handle)], file)
                file.seek(0)
                states = torch.load(file, weights_only=True)
                model = network()
                optimizer = adamw(model, fused=True)
                handle = sg.guard(optimizer, *make(), strict=True)
                for one, state in zip((model, optimizer, handle), states, strict=True):
                    one.load_state_dict(state)
            optimizer.zero_grad()
            times = NAN if number == 9 else 30.0 if number in (12, 20) else 1.0
            backward(model, batch(number), times=times)
            optimizer.step()
        return flat(model)

    assert torch.equal(trained(cut=True), trained(cut=False))


def test_a_state_of_other_policies_is_refused() -> None:
    one = sg.guard(adamw(network()), sg.clip_norm(1.0))
    other = sg.guard(adamw(network()), sg.clip_value(1.0))
    with pytest.raises(ValueError, match="expected the state of the policies clip_value, got"):
        other.load_state_dict(one.state_dict())


# --- Faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decision", "says"),
    [
        (None, "must return a Decision, got None"),
        (sg.Decision(divide=-1.0), "divide.* must be at least 1, got -1"),
        (sg.Decision(divide=NAN), "divide.* must be at least 1, got nan"),
        (sg.Decision(lr=2.0), "share of the learning rate, 0 to 1, got 2"),
        (sg.Decision(divide_each=torch.ones(3)), r"must be a tensor \[4\]"),
        (sg.Decision(divide_each=torch.full((4,), 0.5)), "must be at least 1, got less"),
    ],
)
def test_a_decision_that_can_not_be_carried_out_harms_nobody_else(decision: Any, says: str) -> None:
    model = network()
    optimizer = adamw(model)
    bad = Broken("")
    bad.decide = lambda gradients: decision  # type: ignore[method-assign]
    handle = sg.guard(optimizer, sg.skip_nonfinite(), bad, sg.clip_norm(0.1))
    with pytest.warns(RuntimeWarning, match=f"broken failed and steps aside.*{says}"):
        steps(model, optimizer, 1.0, NAN)
    assert [one.by for one in handle.history] == [("clip_norm",), ("skip_nonfinite",)]


class Broken:
    """A policy that fails where it is told to."""

    name = "broken"

    def __init__(self, where: str) -> None:
        self.where = where

    def decide(self, gradients: sg.Gradients) -> sg.Decision:
        if self.where == "decide":
            raise ZeroDivisionError("mine")
        return sg.Decision(divide=2.0)

    def observe(self, event: sg.Event) -> None:
        if self.where == "observe":
            raise ZeroDivisionError("mine")

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


@pytest.mark.parametrize("where", ["decide", "observe"])
def test_a_policy_that_fails_is_reported_once_and_steps_aside(where: str) -> None:
    model, plain = network(), network()
    optimizer, other = adamw(model), adamw(plain)
    handle = sg.guard(optimizer, Broken(where), sg.skip_nonfinite())
    with pytest.warns(RuntimeWarning, match="broken failed and steps aside.*mine") as caught:
        steps(model, optimizer, 1.0, NAN, 1.0)
    assert len(caught) == 1
    assert handle.history.skipped == 1, "the others go on"
    assert len(handle.history) == 3
    if where == "decide":
        for _ in range(2):
            step(plain, other)
        assert torch.equal(flat(model), flat(plain))


@pytest.mark.parametrize("where", ["decide", "observe"])
def test_strict_raises_what_a_policy_raises(where: str) -> None:
    model = network()
    optimizer = adamw(model)
    sg.guard(optimizer, Broken(where), strict=True)
    backward(model)
    with pytest.raises(ZeroDivisionError, match="mine"):
        optimizer.step()


# --- Refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "kind", "says"),
    [
        (lambda m: sg.guard(m), TypeError, "expected a torch optimizer, got Sequential"),
        (
            lambda m: sg.guard(torch.optim.LBFGS(m.parameters())),
            ValueError,
            "LBFGS, which evaluates the loss many times",
        ),
        (lambda m: sg.guard(adamw(m), 1.0), TypeError, "expected policies such as"),
        (lambda m: sg.guard(adamw(m), model="x"), TypeError, "expected a torch module, got str"),
        (lambda m: sg.guard(adamw(m), keep=0), ValueError, "keep must be at least 1, got 0"),
        (lambda m: sg.guard(adamw(m)).load_state_dict({}), ValueError, "handle.state_dict"),
        (lambda m: sg.guard(adamw(m)).history[-1], IndexError, "no step has been made"),
        (lambda m: sg.guard(adamw(m), sg.ladder(1.0)), TypeError, r"unpack it with \*"),
        (lambda m: sg.guard(adamw(m), sg.clip_norm), TypeError, r"call it: clip_norm\(\.\.\.\)"),
        (
            lambda m: sg.guard(adamw(m), sg.clip_norm(1.0), sg.clip_norm(2.0)),
            ValueError,
            "two policies named clip_norm",
        ),
        (lambda m: sg.guard(adamw(m, differentiable=True)), ValueError, "differentiable=True"),
        (lambda m: sg.guard(adamw(m, capturable=True)), ValueError, "use fused=True"),
        (
            lambda _: sg.guard(torch.optim.SGD([{"params": []}], 0.1)),
            ValueError,
            "with parameters, got SGD without any",
        ),
    ],
)
def test_what_can_not_be_guarded_is_refused_in_one_sentence(
    call: Any, kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind, match=says):
        call(network())


def test_a_second_guard_on_one_optimizer_is_refused() -> None:
    optimizer = adamw(network())
    handle = sg.guard(optimizer)
    with pytest.raises(ValueError, match=r"guarded already: .*handle\.remove\(\)"):
        sg.guard(optimizer)
    handle.remove()
    sg.guard(optimizer)


def test_a_policy_that_guards_another_optimizer_is_refused() -> None:
    policy = sg.clip_quantile()
    sg.guard(adamw(network()), policy)
    with pytest.raises(ValueError, match="clip_quantile guards another optimizer"):
        sg.guard(adamw(network()), policy)


# --- On a device ----------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("policy", [sg.clip_norm(0.5), sg.clip_quantile(0.5), sg.clip_zscore()])
def test_nothing_waits_for_the_device(policy: sg.Policy) -> None:
    model = network(norm=True).cuda()
    optimizer = adamw(model, fused=True)
    handle = sg.guard(optimizer, sg.skip_nonfinite(), policy, model=model, strict=True)
    x = batch().cuda()
    for times in (1.0, NAN, 1.0, 1.0):
        optimizer.zero_grad()
        backward(model, x, times=times)
        torch.cuda.set_sync_debug_mode("error")
        try:
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert [one.skipped for one in handle.history] == [False, True, False, False]
    assert torch.isfinite(flat(model)).all()
