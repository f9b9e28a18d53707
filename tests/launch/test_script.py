"""A script runs unchanged up to its first step, and what it trains is captured."""

from __future__ import annotations

import copy
import gc
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_pre_hooks

from steadygrad.core.report import Report
from steadygrad.launch.look import look_at
from steadygrad.launch.script import run
from steadygrad.replay.captured import CannotLook, Captured, UsersError
from steadygrad.replay.score import reached
from steadygrad.replay.tape import Tape, ancestors, module_calls

SCRIPTS = Path(__file__).parent / "scripts"


def capture(
    name: str, *arguments: str, then: Callable[[Captured], None] = lambda captured: None
) -> Captured:
    found: list[Captured] = []

    def keep(captured: Captured) -> int:
        then(captured)
        found.append(captured)
        return 0

    assert run(str(SCRIPTS / name), arguments, keep) == 0
    return found[0]


def script(tmp_path: Path, text: str) -> str:
    path = tmp_path / "script.py"
    path.write_text(text)
    return str(path)


def parameters(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


REPLAYED = [
    ("plain.py", ["--lr", "0.1"]),
    ("accumulation.py", []),
    ("closure.py", []),
    ("functional.py", []),
    ("policy.py", []),
    ("adversarial.py", []),
    ("heads.py", []),
    ("ensemble.py", []),
    ("penalised.py", []),
    ("parallel.py", []),
    ("rivals.py", []),
]


@pytest.mark.parametrize(("name", "arguments"), REPLAYED)
def test_the_loss_of_a_copy_is_the_scripts_and_reaches_every_stepped_parameter(
    name: str, arguments: Sequence[str]
) -> None:
    captured = capture(name, *arguments)
    assert captured.blind == {}
    assert captured.loss is not None
    twin = copy.deepcopy(captured.model)
    before = torch.get_rng_state()
    loss = captured.loss(twin)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(loss, captured.loss(copy.deepcopy(captured.model)))
    assert captured.optimizer is not None
    stepped = {id(p) for group in captured.optimizer.param_groups for p in group["params"]}
    names = [n for n, p in captured.model.named_parameters() if id(p) in stepped]
    mine = dict(twin.named_parameters())
    assert {id(mine[n]) for n in names} <= reached(loss)
    assert not reached(loss) & {id(p) for p in captured.model.parameters()}


def test_names_are_the_users() -> None:
    assert parameters(capture("plain.py", "--lr", "1").model)[0] == "0.weight"
    assert parameters(capture("policy.py").model)[0] == "actor.0.weight"
    assert parameters(capture("functional.py").model) == ["w1", "b1", "w2"]
    several = parameters(capture("accumulation.py").model)
    assert several[:2] == ["temperature", "encoder.0.weight"]
    assert "head.bias" in several


def test_no_weight_has_moved_and_the_script_got_its_arguments(
    capfd: pytest.CaptureFixture[str],
) -> None:
    captured = capture("plain.py", "--lr", "0.25")
    torch.manual_seed(0)
    fresh = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 3))
    pairs = zip(captured.model.parameters(), fresh.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert captured.optimizer is not None
    assert captured.optimizer.param_groups[0]["lr"] == 0.25
    assert isinstance(captured.inputs, tuple)
    assert "stepped" not in capfd.readouterr().out


def test_nothing_is_left_behind() -> None:
    before = (
        nn.Module.__call__,
        torch.autograd.backward,
        torch.optim.Optimizer.__init__,
        torch.amp.GradScaler.step,
        torch.autograd.Function.apply.__func__,
        sys.modules["__main__"],
        list(sys.argv),
        list(sys.path),
        dict(os.environ),
        len(_global_optimizer_pre_hooks),
    )
    capture("accumulation.py")
    after = (
        nn.Module.__call__,
        torch.autograd.backward,
        torch.optim.Optimizer.__init__,
        torch.amp.GradScaler.step,
        torch.autograd.Function.apply.__func__,
        sys.modules["__main__"],
        list(sys.argv),
        list(sys.path),
        dict(os.environ),
        len(_global_optimizer_pre_hooks),
    )
    assert before == after


def test_a_scripts_random_numbers_are_as_without_us(tmp_path: Path) -> None:
    text = """
import torch
from torch import nn
torch.manual_seed(3)
model = nn.Sequential(nn.Linear(4, 4), nn.Dropout())
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
(model(torch.randn(2, 4)) + torch.randn(2, 4)).sum().backward()
drawn = torch.rand(()).item()
optimizer.step()
"""
    alone: dict[str, Any] = {}
    exec(text, alone)
    seen = []
    run(
        script(tmp_path, text),
        [],
        lambda _: seen.append(vars(sys.modules["__main__"])["drawn"]) or 0,
    )
    assert seen == [alone["drawn"]]


def test_a_scaled_loss_is_taken_before_its_scaling_and_the_first_of_equal_passes() -> None:
    captured = capture("accumulation.py")
    assert captured.loss is not None
    assert captured.loss(captured.model).item() < 1.0
    assert captured.facts["script"]["loss_scale"] == 1024.0
    assert captured.facts["script"]["backward_passes"] == 4


def test_passes_that_reach_other_parameters_are_added() -> None:
    captured = capture("heads.py")
    assert captured.loss is not None
    net = captured.model
    captured.loss(net).backward()
    assert all(p.grad is not None for p in net.parameters())


def test_a_closure_is_run_once_to_see_the_loss() -> None:
    captured = capture("closure.py")
    assert captured.facts["script"]["closure"] is True
    assert captured.loss is not None


def test_a_scaler_that_skips_every_step_is_taken_at_its_word() -> None:
    captured = capture("singular.py")
    assert captured.loss is not None


def test_what_another_optimizer_trains_is_named_and_frozen_where_this_loss_does_not_reach_it() -> (
    None
):
    captured = capture("rivals.py")
    others = captured.facts["script"]["trained_by_others"]
    assert {name.split(".")[0] for name in others} == {"judge", "idle"}
    closed = {n.split(".")[0] for n, p in captured.model.named_parameters() if not p.requires_grad}
    assert closed == {"idle"}


def test_a_generator_whose_samples_are_detached_in_its_own_step_is_named(tmp_path: Path) -> None:
    text = """
import torch
from torch import nn
maker, judge = nn.Linear(4, 2), nn.Linear(2, 1)
optimizer = torch.optim.Adam(maker.parameters())
other = torch.optim.Adam(judge.parameters())
fake = maker(torch.randn(8, 4))
judge(fake.detach()).mean().backward()
{}.step()
"""
    found: list[Any] = []

    def keep(captured: Captured) -> int:
        found.append(captured.facts["script"]["bypassed"])
        return 0

    for stepped in ("optimizer", "other"):
        run(script(tmp_path, text.format(stepped)), [], keep)
    assert found[0]["network"] == "maker"
    assert found[0]["at"].endswith("script.py:8")
    assert found[1] == {}


def test_wrappers_are_looked_through() -> None:
    assert parameters(capture("parallel.py").model)[0] == "0.weight"


def test_the_stacked_parameters_of_an_ensemble_are_the_model() -> None:
    names = parameters(capture("ensemble.py").model)
    assert names == ["stacked_0_weight", "stacked_0_bias", "stacked_2_weight", "stacked_2_bias"]


def test_a_transform_over_a_closure_says_what_to_do(tmp_path: Path) -> None:
    text = (
        "import torch\nw = torch.randn(5, 1, requires_grad=True)\n"
        "loss = torch.func.vmap(lambda row: row @ w)(torch.randn(8, 5)).square().mean()\n"
        "loss.backward()\ntorch.optim.SGD([w], 0.1).step()\n"
    )
    with pytest.raises(CannotLook, match=r"vmap, grad.*as arguments"):
        run(script(tmp_path, text), [], lambda captured: 0)


def test_memory_that_was_never_filled_is_named_and_nothing_else() -> None:
    assert capture("garbage.py").facts["builds"] == {"filled": ["2.bias"]}
    assert "builds" not in capture("plain.py", "--lr", "1").facts


def test_a_signal_that_cannot_be_followed_is_said() -> None:
    captured = capture("opaque.py")
    assert captured.loss is None
    assert "could not be followed" in captured.blind["loss"]
    assert parameters(captured.model) == ["layer.weight", "layer.bias"]


def test_a_replay_that_does_not_give_the_scripts_loss_is_not_used() -> None:
    captured = capture("meta_learning.py")
    assert captured.loss is None
    assert "computed again" in captured.blind["loss"]


def test_training_in_another_thread_is_said_to_be_out_of_sight() -> None:
    with pytest.raises(CannotLook, match="main thread, it stepped its optimizer in trainer"):
        capture("threaded.py")


ENDINGS = [
    ("print('no step')", "ended without one"),
    ("import sys; sys.exit(4)", "exited with 4 before its first step"),
    ("exit()", "exited with 0 before its first step"),
    ("import argparse; p = argparse.ArgumentParser(); p.add_argument('x'); p.parse_args()", "2"),
    (
        "import torch; w = torch.ones(1, requires_grad=True); torch.optim.SGD([w]).step()",
        "stepped its optimizer before any backward",
    ),
]


@pytest.mark.parametrize(("text", "says"), ENDINGS)
def test_a_script_without_a_step_is_told_what_was_expected(
    tmp_path: Path, text: str, says: str
) -> None:
    with pytest.raises(CannotLook, match=says):
        run(script(tmp_path, text), [], lambda _: 0)


def test_a_users_exception_is_the_cause(tmp_path: Path) -> None:
    with pytest.raises(UsersError) as caught:
        run(script(tmp_path, "raise LookupError('mine')"), [], lambda _: 0)
    assert isinstance(caught.value.__cause__, LookupError)


def test_an_interrupt_comes_through(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(script(tmp_path, "raise KeyboardInterrupt"), [], lambda _: 0)


def test_a_script_that_saves_in_the_end_saves_nothing(tmp_path: Path) -> None:
    text = f"""
import torch
model = torch.nn.Linear(2, 1)
try:
    model(torch.ones(1, 2)).sum().backward()
    torch.optim.SGD(model.parameters()).step()
finally:
    torch.save(model.state_dict(), {str(tmp_path / "model.pt")!r})
"""
    run(script(tmp_path, text), [], lambda _: 0)
    assert not (tmp_path / "model.pt").exists()


def test_what_the_script_drops_is_dropped_here() -> None:
    tape, model = Tape(), nn.Linear(4, 4)
    with module_calls(tape), tape:
        out = model(torch.ones(2, 4)).relu()
        made = tape.made(out)
        assert made is not None
        entry = weakref.ref(ancestors([made])[0])
        made = None
        model(torch.zeros(2, 4))
        del out
    gc.collect()
    assert entry() is None


def test_a_constant_that_broke_is_named_with_its_op_and_its_line() -> None:
    reports: list[Report] = []

    def look(captured: Captured) -> None:
        reports.append(look_at(captured, target="script", seed=0, probes=False))

    capture("broken_constant.py", then=look)
    (found,) = reports[0].findings
    assert (found.code, found.where) == ("G003", ("loss",))
    assert "weights is made by div, which makes inf of input = 0" in found.says
    assert "broken_constant.py:9" in found.says


def in_a_process(name: str, *arguments: str) -> Any:
    source = f"""
import json, sys
from steadygrad.launch.script import run
def then(captured):
    loss = captured.loss and float(captured.loss(captured.model).detach())
    names = [name for name, _ in captured.model.named_parameters()]
    print(json.dumps([names, loss, dict(captured.blind), captured.facts]))
    return 0
sys.exit(run({str(SCRIPTS / name)!r}, {list(arguments)!r}, then))
"""
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_the_trainer_of_transformers_is_seen_through(tmp_path: Path) -> None:
    names, loss, blind, facts = in_a_process("huggingface.py", str(tmp_path), "--bf16")
    assert names[0] == "transformer.wte.weight"
    assert blind == {}
    assert loss > 1
    assert facts["script"]["backward_passes"] == 2


@pytest.mark.slow
def test_the_trainer_of_lightning_is_seen_through(tmp_path: Path) -> None:
    names, loss, blind, facts = in_a_process("lightning.py", str(tmp_path))
    assert names[0] == "net.0.weight"
    assert blind == {}
    assert loss > 0
    assert facts["script"]["closure"] is True


COMPILED = """
import torch
from torch import nn
model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
optimizer = torch.optim.AdamW(model.parameters())
optimizer.zero_grad()
fast = torch.compile(model)
fast(torch.randn(16, 4)).square().mean().backward()
optimizer.step()
"""


@pytest.mark.parametrize(
    ("text", "wanted"),
    [(COMPILED, True), (COMPILED.replace("torch.compile(model)", "model"), False)],
    ids=["compiled", "plain"],
)
def test_a_compiler_is_imported_only_by_a_script_that_compiles(
    tmp_path: Path, text: str, wanted: bool
) -> None:
    source = f"""
import sys
from steadygrad.launch.look import look_at
from steadygrad.launch.script import run
def then(captured):
    assert captured.blind == {{}}
    report = look_at(captured, target="x", seed=0, probes=True)
    assert report.verdict == "healthy"
    assert "update" in report.record.facts and "trial" in report.record.facts
    return 0
code = run({script(tmp_path, text)!r}, [], then)
assert ("torch._dynamo" in sys.modules, "sympy" in sys.modules) == ({wanted}, {wanted})
sys.exit(code)
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


LOOP = """
import torch
from torch import nn
from torch.nn import functional as F
torch.manual_seed(0)
model = nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
x, y = torch.randn(8, 4), torch.arange(8) % 2
{}
optimizer.step()
"""
ORDERS = {
    "optimizer.zero_grad(); F.cross_entropy(model(x), y).backward()": {},
    "F.cross_entropy(model(x), y).backward(); optimizer.zero_grad()": {"none": True},
    "F.cross_entropy(model(x), y).backward(); model.zero_grad(set_to_none=False)": {"none": False},
    "(0 * F.cross_entropy(model(x), y)).backward()": {"none": False},  # it was zero before
}


@pytest.mark.parametrize("order", ORDERS)
def test_a_gradient_erased_before_the_step_is_seen(tmp_path: Path, order: str) -> None:
    captured = capture(script(tmp_path, LOOP.format(order)))
    erased = captured.facts["script"]["erased"]
    assert erased == ({"parameters": 2, **ORDERS[order]} if ORDERS[order] else {})
    report = look_at(captured, target="", seed=0, probes=False)
    broken = [one.where for one in report.findings if one.code == "G501"]
    assert broken == ([("optimizer",)] if "zero_grad" in order.partition(";")[2] else [])
