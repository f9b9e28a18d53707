"""A target is a script, a build, or a model of others; what cannot be looked at is told."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from steadygrad.launch.build import built
from steadygrad.launch.look import look_at
from steadygrad.launch.spec import tensor_of
from steadygrad.launch.target import is_script, launch
from steadygrad.replay.captured import CannotLook, Captured, UsersError

BUILDS = """
import torch
from torch import nn
def alone(): return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
def pair(): return alone(), torch.randn(3, 4)
def full():
    x, model = torch.randn(8, 4), alone()
    return model, x, lambda m: m(x).pow(2).mean()
def criterion(): return alone(), torch.randn(3, 4), 3.0
def four(): return alone(), 1, 2, 3
def wrong(): return {"model": alone()}
def raises(): raise LookupError("mine")
def inputs(): return {"input": torch.randn(5, 4)}
def garbage():
    model = alone()
    model[0].bias = nn.Parameter(torch.empty(8))
    return model, torch.randn(3, 4)
def drifting():
    model = alone()
    with torch.no_grad():
        model[2].weight.normal_(generator=torch.Generator().manual_seed(id(model)))
    return model, torch.randn(3, 4)
def bare(): return nn.ReLU(), torch.randn(3, 4)
def integers():
    model = nn.Module()
    model.w = nn.Parameter(torch.ones(2, dtype=torch.int64), requires_grad=False)
    return model, torch.ones(2)
def misfit(): return alone(), torch.randn(3, 5)
def elsewhere(): return alone(), torch.randn(3, 4, device="meta")
number = 3
model = alone()
"""


@pytest.fixture
def builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "my_builds.py").write_text(BUILDS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("my_builds", None)


def captured(target: str, *described: str) -> Captured:
    return built(target, described, 0)


@pytest.mark.parametrize("place", ["my_builds", "my_builds.py"])
def test_a_build_may_return_a_model_with_inputs_and_a_loss(builds: None, place: str) -> None:
    assert isinstance(captured(f"{place}:pair").inputs, torch.Tensor)
    full = captured(f"{place}:full")
    assert full.loss is not None
    assert full.loss(full.model).dim() == 0


def test_inputs_may_be_described_or_made(builds: None) -> None:
    assert captured("my_builds:alone", "f32[7,4]").inputs[0].shape == (7, 4)
    assert captured("my_builds:model", "my_builds:inputs").inputs["input"].shape == (5, 4)


def test_a_description_gives_dtype_sizes_and_bound() -> None:
    ids = tensor_of("i64[8, 128]<50257")
    assert ids.dtype == torch.int64
    assert ids.shape == (8, 128)
    assert 2 < ids.max() < 50257
    assert tensor_of("i32[100]").max() == 1
    assert tensor_of("bf16[2]").dtype == torch.bfloat16
    assert tensor_of("f32[]").shape == ()


def test_two_builds_from_one_seed_tell_memory_that_was_not_filled(builds: None) -> None:
    assert captured("my_builds:pair").facts["builds"] == {"filled": [], "differing": []}
    assert captured("my_builds:garbage").facts["builds"]["filled"] == ["0.bias"]
    assert captured("my_builds:drifting").facts["builds"]["differing"] == ["2.weight"]


SENTENCES = [
    ("my_builds:alone", "got a Module alone: add --input"),
    ("my_builds:criterion", "loss .* to be a function of the model, got float"),
    ("my_builds:four", r"got \(Sequential, int, int, int\)"),
    ("my_builds:wrong", "got dict"),
    ("my_builds:number", "to be a function or a Module, got int"),
    ("my_builds:ful", "did you mean full"),
    ("my_builds.py:ful", "did you mean full"),
    ("my_build.py:full", "did you mean my_builds.py"),
    ("no.such:full", "no module named no "),
    ("my_builds.p", "did you mean my_builds.py"),
    (".", "got the directory"),
    ("hf:gpt22", "did you mean gpt2"),
    ("hf:.", "config.json"),
    ("timm:resnet50", "torchvision .* pip install"),
]


@pytest.mark.parametrize(("target", "says"), SENTENCES)
def test_what_cannot_be_looked_at_is_told_in_a_sentence(
    builds: None, target: str, says: str
) -> None:
    with pytest.raises(CannotLook, match=says):
        launch(target, [], lambda _: 0)


UNFIT = [
    ("my_builds:bare", "a model with parameters, it has none"),
    ("my_builds:integers", "floating-point parameters, got int64"),
    ("my_builds:elsewhere", "inputs on cpu like the model, got meta"),
]


@pytest.mark.parametrize(("target", "says"), UNFIT)
def test_a_model_that_cannot_be_checked_is_told_in_a_sentence(
    builds: None, target: str, says: str
) -> None:
    with pytest.raises(CannotLook, match=says):
        look_at(captured(target), target=target, seed=0, probes=False)


@pytest.mark.parametrize("target", ["my_builds:raises", "my_builds:misfit"])
def test_what_the_users_code_raises_is_the_users(builds: None, target: str) -> None:
    with pytest.raises(UsersError) as caught:
        launch(target, [], lambda one: look_at(one, target=target, seed=0, probes=False) and 0)
    assert isinstance(caught.value.__cause__, (LookupError, RuntimeError))


def test_arguments_after_a_build_are_refused() -> None:
    with pytest.raises(CannotLook, match="stand before the target"):
        launch("pkg.mod:build", ["--seed", "1"], lambda _: 0)


def test_a_description_that_is_none_is_told() -> None:
    with pytest.raises(CannotLook, match="expected --input as"):
        tensor_of("f32[8;4]")


@pytest.mark.parametrize("target", ["train.py", "a/b.py", "C:/x/train.py", "x:1.py"])
def test_a_file_is_a_script(target: str) -> None:
    assert is_script(target)


@pytest.mark.parametrize("target", ["a.b:c", "a.py:c", "a:b.c", "hf:./dir", "timm:vit-b.in1k"])
def test_what_names_an_attribute_or_a_zoo_is_not(target: str) -> None:
    assert not is_script(target)


@pytest.mark.slow
def test_a_model_of_transformers_is_built_from_its_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"model_type": "gpt2", "n_layer": 1, "n_embd": 8, "n_head": 1, "vocab_size": 32, '
        '"bos_token_id": 0, "eos_token_id": 0}'
    )
    seen: list[Captured] = []
    launch(f"hf:{tmp_path}", [], lambda one: seen.append(one) or 0)
    model = seen[0].model
    assert type(model).__name__ == "GPT2LMHeadModel"
    assert isinstance(model, nn.Module)
    assert seen[0].loss is not None
    assert seen[0].loss(model).item() == pytest.approx(3.47, abs=0.5)
