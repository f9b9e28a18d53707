"""`check` takes what users have, and says in one sentence what it cannot take."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.checkpoint import CheckpointFunction, checkpoint

import steadygrad as sg
from steadygrad.core.report import Report


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


X, Y = torch.randn(16, 4, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 3


def units(report: Report) -> list[str]:
    return [site.name for site in report.record.sites_of("unit")]


def blind(report: Report) -> dict[str, str]:
    return {one.code: one.why for one in report.blind}


# --- What cannot be taken ------------------------------------------------------------------------


def vector(model: nn.Module) -> Tensor:
    out: Tensor = model(X).sum(1)
    return out


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        (("model", X), TypeError, r"expected a torch\.nn\.Module to check, got str"),
        ((nn.Linear, X), TypeError, r"expected a torch\.nn\.Module to check, got type"),
        ((small(),), ValueError, "expected inputs or a loss to run the model with, got neither"),
        ((small(), torch.ones(2, 4, device="meta")), ValueError, "on cpu like the model, got meta"),
        ((small().to("meta"), X), ValueError, "on meta like the model, got cpu"),
    ],
    ids=["a string", "a class", "nothing to run with", "other inputs", "other model"],
)
def test_wrong_input_is_refused_in_one_sentence(
    arguments: tuple[Any, ...], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence) as caught:
        sg.check(*arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("loss", "sentence"),
    [
        (vector, r"expected loss\(model\) to return one number as a tensor, got \[16\]"),
        (lambda m: 3.0, r"one number as a tensor, got float"),
        (lambda m: None, r"one number as a tensor, got NoneType"),
        (nn.functional.cross_entropy(torch.ones(1, 2), torch.zeros(1).long()), "got Tensor"),
        (0.5, r"expected loss to be a function of the model, as in loss=lambda m: .*, got float"),
    ],
    ids=["a vector", "a number", "nothing", "a value", "a number instead of a function"],
)
def test_a_loss_that_is_none_is_refused_in_one_sentence(loss: Any, sentence: str) -> None:
    with pytest.raises(TypeError, match=sentence):
        sg.check(small(), loss=loss)


def test_an_output_that_holds_no_tensor_is_refused() -> None:
    class Opaque(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return SimpleNamespace(logits=super().forward(x))

    with pytest.raises(ValueError, match="got SimpleNamespace: give a loss as well"):
        sg.check(Opaque(4, 3), X)
    assert sg.check(Opaque(4, 3), loss=lambda m: m(X).logits.mean()).verdict == "healthy"


def test_a_loss_that_runs_another_model_is_refused() -> None:
    model = small()
    with pytest.raises(ValueError, match="expected loss to run the model that it is given"):
        sg.check(model, loss=lambda _: nn.functional.cross_entropy(model(X), Y))


def test_a_model_without_values_is_refused() -> None:
    with pytest.raises(ValueError, match="meta"):
        sg.check(small().to("meta"), X.to("meta"))


def test_a_scripted_model_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(small())
    for model in (scripted, nn.Sequential(scripted, nn.ReLU())):
        with pytest.raises(TypeError, match="expected a model written in Python, got TorchScript"):
            sg.check(model, X)


def test_what_the_model_raises_is_the_callers() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes"):
        sg.check(small(), torch.ones(2, 5))


# --- What can be taken ---------------------------------------------------------------------------


class Takes(nn.Module):
    """A layer behind whatever signature."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Any, scale: float = 1.0, extra: Tensor | None = None) -> Any:
        x = x["x"] if isinstance(x, dict) else x
        x = x.data if isinstance(x, torch.nn.utils.rnn.PackedSequence) else x
        return {"logits": scale * self.layer(x), "count": 3}


@pytest.mark.parametrize(
    "inputs",
    [
        X,
        (X,),
        [X, 2.0],
        (X, 2.0, X),
        {"x": X},
        {"x": X, "extra": X},
        ({"x": X},),
        pack_sequence([X[:4], X[4:6]]),
    ],
    ids=lambda given: type(given).__name__,
)
def test_inputs_come_as_tensor_tuple_mapping_or_packed_sequence(inputs: Any) -> None:
    report = sg.check(Takes(), inputs)
    assert units(report) == ["layer"]
    assert report.verdict == "healthy"


def test_a_loss_may_run_the_model_as_it_likes() -> None:
    report = sg.check(
        Takes(), loss=lambda m: m({"x": X})["logits"].square().mean() + m.layer(X).mean()
    )
    assert report.verdict == "healthy"


def test_a_loss_may_run_a_method_instead_of_the_model() -> None:
    report = sg.check(small(), loss=lambda m: nn.functional.cross_entropy(m[2](m[0](X).relu()), Y))
    assert report.verdict == "healthy"


def test_a_loss_may_map_the_model_over_samples() -> None:
    report = sg.check(small(), loss=lambda m: torch.func.vmap(m)(X).square().mean())
    assert report.worst.name == "note"


def test_a_loss_of_one_element_is_one_number() -> None:
    assert sg.check(small(), loss=lambda m: m(X).sum()[None]).verdict == "healthy"


def test_integers_are_taken_through_an_embedding() -> None:
    model = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
    report = sg.check(model, torch.arange(10))
    assert report.verdict == "healthy"
    assert "G102" in report.clear
    assert units(report)[-2:] == ["1", "3"]


def test_a_model_without_parameters_is_no_fault() -> None:
    report = sg.check(nn.Sequential(nn.Tanh(), nn.Softmax(1)), X)
    assert report.findings == ()


def test_a_frozen_model_is_looked_at() -> None:
    report = sg.check(small().requires_grad_(False), X)
    assert report.record.was_read("flow")
    assert [one.code for one in report.findings] == ["G501"]


def test_an_output_without_gradient_is_said_to_be_blind() -> None:
    class Cuts(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).detach()

    report = sg.check(Cuts(4, 3), X)
    assert blind(report)["G102"] == "no output of the model carries a gradient"


def test_a_loss_without_gradient_is_a_finding() -> None:
    report = sg.check(small(), loss=lambda m: m(X).detach().square().mean())
    assert [one.code for one in report.findings] == ["G501"]


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.bfloat16, torch.complex64], ids=["double", "half", "complex"]
)
def test_a_model_of_another_dtype_is_taken(dtype: torch.dtype) -> None:
    report = sg.check(nn.Sequential(nn.Linear(4, 3, dtype=dtype)), X.to(dtype))
    assert all(one.severity == 0 for one in report.findings)


@pytest.mark.parametrize("size", [0, 1, 2])
def test_a_batch_of_few_samples_is_taken(size: int) -> None:
    report = sg.check(small(), torch.ones(size, 4))
    assert report.worst.name == "note"


def test_a_sparse_parameter_is_taken() -> None:
    model = nn.Linear(4, 3, bias=False)
    model.sparse = nn.Parameter(torch.eye(4).to_sparse(), requires_grad=False)
    assert sg.check(model, X).verdict == "healthy"


def test_an_embedding_with_sparse_gradients_is_taken() -> None:
    model = nn.Sequential(nn.Embedding(10, 8, sparse=True), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loss = nn.CrossEntropyLoss()
    target = torch.arange(10) % 2
    report = sg.check(model, loss=lambda m: loss(m(torch.arange(10)), target), optimizer=optimizer)
    assert report.worst.name == "note"


# --- Modes and wrappers --------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_put_back(training: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).train(training)
    sg.check(model, X)
    assert {one.training for one in model.modules()} == {training}
    assert not model[1].running_mean.any()  # type: ignore[union-attr] # a buffer


def test_a_model_in_evaluation_mode_is_looked_at_as_it_trains() -> None:
    seen: list[bool] = []
    model = small().eval()
    model[1].register_forward_hook(lambda m, *_: seen.append(m.training))
    sg.check(model, X)
    assert all(seen)


def test_a_part_that_the_user_keeps_in_evaluation_mode_stays_there() -> None:
    seen: list[bool] = []
    model = small().train()
    model[1].eval()
    model[1].register_forward_hook(lambda m, *_: seen.append(m.training))
    sg.check(model, X)
    assert seen
    assert not any(seen)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_inside_a_block_without_gradients_it_works_as_outside(mode: Any) -> None:
    model = small()
    with mode():
        report = sg.check(model, X)
    assert units(report) == ["0", "2"]
    assert not blind(report).get("G102")


def test_inputs_made_in_inference_mode_are_taken() -> None:
    with torch.inference_mode():
        x = X * 2
    assert units(sg.check(small(), x)) == ["0", "2"]


def test_a_compiled_model_is_looked_at_uncompiled() -> None:
    model = small()
    report = sg.check(torch.compile(model, backend="eager"), X)
    assert units(report) == ["0", "2"]
    assert report.target == "Sequential"


def test_a_model_compiled_in_place_is_looked_at() -> None:
    model = small()
    model.compile(backend="eager")
    assert units(sg.check(model, X)) == ["0", "2"]


def test_a_compiled_part_is_looked_at() -> None:
    model = nn.Sequential(small(), torch.compile(nn.Linear(3, 3), backend="eager"))
    names = units(sg.check(model, X))
    assert names[:2] == ["0.0", "0.2"]
    assert len(names) == 3


class Checkpointed(nn.Module):
    """A part whose ops are run again in the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.part, self.reentrant = small(), reentrant
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.part, x, use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_part_is_looked_into(reentrant: bool) -> None:
    model = Checkpointed(reentrant)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loss_fn = nn.CrossEntropyLoss()
    report = sg.check(model, loss=lambda m: loss_fn(m(X), Y), optimizer=optimizer)
    assert units(report) == ["part.0", "part.2", "head"]
    assert report.verdict == "healthy"


def test_checkpoints_work_again_afterwards() -> None:
    apply = CheckpointFunction.apply
    with pytest.raises(ZeroDivisionError):
        sg.check(small(), loss=lambda m: m(X).sum() / (1 // 0))
    assert CheckpointFunction.apply == apply
    model = Checkpointed(reentrant=True)
    model(X.clone().requires_grad_()).sum().backward()
    assert model.part[0].weight.grad is not None


def test_a_data_parallel_model_is_looked_at_unwrapped() -> None:
    assert units(sg.check(nn.DataParallel(small()), X)) == ["0", "2"]


def test_wrappers_inside_wrappers_are_looked_through() -> None:
    model = torch.compile(nn.DataParallel(small()), backend="eager")
    assert units(sg.check(model, X)) == ["0", "2"]


# --- The report ----------------------------------------------------------------------------------


def test_two_checks_say_the_same() -> None:
    model = small()
    first, second = sg.check(model, X), sg.check(model, X)
    assert first.record.metrics == second.record.metrics
    assert np.array_equal(first.record.values, second.record.values, equal_nan=True)
    assert [f.says for f in first.findings] == [f.says for f in second.findings]


def test_cost_and_target_stand_in_the_report() -> None:
    report = sg.check(small(), X)
    assert report.target == "Sequential"
    assert report.cost["seconds"] > 0
    assert report.cost["relative_to_step"] > 0
    assert sg.check(small(), X, target="train.py").target == "train.py"


def test_the_optimizers_name_is_known_to_the_detectors() -> None:
    model = small()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    report = sg.check(model, X, optimizer=optimizer)
    assert report.record.facts["optimizer"] == "AdamW"


def test_given_facts_are_merged_and_reasons_kept() -> None:
    report = sg.check(small(), X, facts={"epoch": 3, "blind": {"batches": "no loader"}})
    assert report.record.facts["epoch"] == 3
    assert report.record.facts["blind"]["batches"] == "no loader"
    assert len(report.record.facts["blind"]) > 1


def test_a_codes_outcome_is_found_clear_or_blind_and_only_one_of_them() -> None:
    deep = nn.Sequential(*[part for _ in range(30) for part in (nn.Linear(32, 32), nn.ReLU())])
    report = sg.check(deep, torch.randn(16, 32))
    found = {one.code for one in (*report.findings, *report.folded)}
    clear, unseen = set(report.clear), set(blind(report))
    assert "G201" in found
    assert not found & clear
    assert not (found | clear) & unseen


def test_a_loss_that_is_taken_inside_the_model_is_no_vanishing_gradient() -> None:
    class Language(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            block = nn.TransformerEncoderLayer(
                64, 4, 256, 0.0, "gelu", batch_first=True, norm_first=True
            )
            self.words, self.places = nn.Embedding(90, 64), nn.Embedding(48, 64)
            self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
            self.norm, self.head = nn.LayerNorm(64), nn.Linear(64, 90, bias=False)
            for one in self.modules():
                if isinstance(one, nn.Linear | nn.Embedding):
                    nn.init.normal_(one.weight, 0, 0.02)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            x = self.words(x) + self.places(torch.arange(48))
            scores = self.head(self.norm(self.blocks(x)))
            return nn.functional.cross_entropy(scores.flatten(0, 1), y.flatten())

    torch.manual_seed(0)
    x, y = torch.randint(90, (16, 48)), torch.randint(90, (16, 48))
    model = Language()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    report = sg.check(model, loss=lambda m: m(x, y), optimizer=optimizer)
    assert report.verdict == "healthy", str(report)
