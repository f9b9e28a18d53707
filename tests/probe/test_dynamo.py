"""torch._dynamo is left out where nobody compiles, and is all there where somebody does.

Most of it is tried in processes of their own: in this one it may be loaded already.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import Optimizer

from steadygrad.probe.dynamo import _disabled, eager, stepped_without, when_loaded

HEAVY = ("torch._dynamo", "sympy")

PRELUDE = """
import sys
import torch
from torch import nn
from torch.optim import Optimizer
from steadygrad.probe.dynamo import eager, optimizers_made_without, stepped_without, when_loaded
loaded = lambda: "torch._dynamo" in sys.modules
make = lambda kind=torch.optim.SGD, **more: kind(nn.Linear(2, 1).parameters(), lr=0.1, **more)
finders = list(sys.meta_path)
"""


def in_a_process(text: str) -> None:
    code = PRELUDE + text + "\nassert sys.meta_path == finders"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_a_check_of_a_model_imports_nothing_heavy() -> None:
    in_a_process(f"""
import steadygrad as sg
model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
sg.check(model, torch.randn(16, 4))
sg.check(model, loss=lambda m: m(torch.randn(16, 4)).square().mean())
assert not any(name in sys.modules for name in {HEAVY})
""")


def test_torch_makes_optimizers_without_it_and_then_as_ever() -> None:
    in_a_process("""
with optimizers_made_without():
    optimizer = make()
    optimizer.zero_grad()
    optimizer.load_state_dict(optimizer.state_dict())
assert not loaded()
make()
assert loaded()
""")


def test_once_it_is_loaded_torch_calls_what_it_would_have() -> None:
    in_a_process("""
graphs = []
def backend(graph, inputs):
    graphs.append(graph)
    return graph.forward
def forget(optimizer, x):
    y = x * 2
    optimizer.zero_grad()
    return y + 1
bare = Optimizer.zero_grad.__wrapped__
with optimizers_made_without():
    optimizer = make()
    assert vars(bare)
    optimizer.zero_grad()
    import torch._dynamo.config  # a submodule, as some write it
    assert torch._dynamo.config is sys.modules["torch._dynamo.config"]
    assert not vars(bare)
    torch.compile(forget, backend=backend)(optimizer, torch.ones(2))
    assert len(graphs) == 2  # broken where the optimizer is told not to be compiled
    assert vars(bare)["__dynamo_disable"] is not bare
""")


def test_what_is_compiled_meanwhile_runs_eagerly_and_is_compiled_afterwards() -> None:
    in_a_process("""
graphs = []
def backend(graph, inputs):
    graphs.append(graph)
    return graph.forward
with eager(), eager():
    assert not loaded()
    double = torch.compile(lambda x: x * 2, backend=backend)
    assert double(torch.ones(1)) == 2
    assert not graphs
assert double(torch.ones(1)) == 2
assert len(graphs) == 1
""")


def test_a_bare_step_is_torchs_step() -> None:
    in_a_process("""
from steadygrad.probe.update import plain_step
def trained(step, kind, **more):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = kind(model.parameters(), lr=0.1, **more)
    modes = []
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(4, 3)).square().sum().backward()
        step(optimizer)
        modes.append(torch.is_grad_enabled())
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach(), modes
KINDS = [(torch.optim.SGD, {"momentum": 0.9}), (torch.optim.Adam, {}), (torch.optim.AdamW, {})]
with optimizers_made_without():
    mine = [trained(plain_step, kind, **more) for kind, more in KINDS]
assert not loaded()
torchs = [trained(lambda one: one.step(), kind, **more) for kind, more in KINDS]
assert loaded()
for (one, modes), (other, _) in zip(mine, torchs):
    assert torch.equal(one, other)
    assert all(modes)
""")


def test_a_module_that_was_only_looked_for_calls_nobody_later() -> None:
    in_a_process("""
from importlib.util import find_spec, module_from_spec
called = []
with when_loaded(lambda: called.append(1)):
    spec = find_spec("torch._dynamo")
assert not loaded()
import torch._dynamo
assert not called
with when_loaded(lambda: called.append(1)):
    assert called == [1]
""")


def test_it_is_called_once_in_another_thread_too() -> None:
    in_a_process("""
import threading
called = []
def load():
    from torch._dynamo import disable
    called.append("used")
with when_loaded(lambda: called.append("loaded")):
    threads = [threading.Thread(target=load) for _ in range(3)]
    for one in threads: one.start()
    for one in threads: one.join()
assert called == ["loaded", "used", "used", "used"]
""")


def test_a_torch_that_does_it_otherwise_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: function(*args)

    monkeypatch.setattr(torch, "_disable_dynamo", other)
    assert _disabled(Optimizer) == []
    monkeypatch.delattr(torch, "_disable_dynamo")
    assert _disabled(Optimizer) == []


def test_a_step_of_the_users_own_is_left_alone() -> None:
    def step(optimizer: Optimizer) -> None: ...

    assert stepped_without(step) is step


def test_where_it_is_loaded_the_stance_is_taken_at_once_and_given_back() -> None:
    import torch._dynamo.eval_frame as frame

    before = frame._stance.stance
    with eager():
        assert frame._stance.stance == "force_eager"
    assert frame._stance.stance == before
    with pytest.raises(ZeroDivisionError), when_loaded(lambda: 1 / 0):
        pass
