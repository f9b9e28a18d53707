"""Guards in sharded training: real processes with gloo, which agree with one process.

The work is done by worker_distributed.py, on two ranks and on four; a case of it is asserted here.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="needs gloo"),
]
WORKER = Path(__file__).with_name("worker_distributed.py")
SECONDS = 180  # several times what it takes, for a machine that is busy
HUNG = "Timeout (0:01:00)!"  # what faulthandler says in the worker
STEPS, BROKEN = 4, 1
TWO = (
    "ddp",
    "fsdp1",
    "fsdp1-nested",
    "fsdp1-flat",
    "fsdp1-flat-nested",
    "fsdp1-unsharded",
    "fsdp2",
    "fsdp2-nested",
    "fsdp2-uneven",
    "fsdp2-part",
    "two-meshes",
    "hsdp",
    "tp",
    "tp-part",
    "tp-sequence",
)
FOUR = ("fsdp2-uneven", "hsdp", "fsdp2-tp")
PARTLY = ("fsdp2-part", "tp-part")  # torch's fused kernels refuse a mixture with plain tensors
EQUAL = ("ddp", "fsdp1-unsharded")  # every rank holds all gradients
TENSOR = ("fsdp2-part", "tp", "tp-part", "tp-sequence", "fsdp2-tp")  # all ranks see all samples
PARTIAL_SUMS = 2  # gradients of sequence parallel's norm that are added up on the way
# AdamW divides by the root of a mean of squares, which for a gradient near 0 makes 1e-15 to 1e-13
SUMS = 1e-11
DIVISOR = 1e-7  # fused kernels take a divisor in float32, exact to 6e-8; lr is 0.01

Outcome = Callable[[int, str], list[dict[str, Any]]]


def places(two: tuple[str, ...] = TWO, four: tuple[str, ...] = FOUR) -> pytest.MarkDecorator:
    """Ask a question of layouts on two ranks, and on four."""
    each = [pytest.param(2, one, id=f"{one}-2") for one in two]
    each += [pytest.param(4, one, id=f"{one}-4", marks=pytest.mark.long) for one in four]
    return pytest.mark.parametrize(("ranks", "layout"), each)


def but(names: tuple[str, ...], *others: str) -> tuple[str, ...]:
    return tuple(one for one in names if one not in others)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What every rank found in a case; all of them run when the first is asked for."""

    @functools.cache
    def run(ranks: int) -> tuple[Path, str]:
        folder = tmp_path_factory.mktemp(f"ranks{ranks}")
        output = _torchrun(ranks, folder)
        if HUNG in output:  # seen once in twenty runs on a busy machine, and not explained yet
            sys.stderr.write(f"a rank has waited for a minute; once more\n{output[-5000:]}")
            folder = tmp_path_factory.mktemp(f"ranks{ranks}-again")
            output = _torchrun(ranks, folder)
        return folder, output

    def found(ranks: int, case: str) -> list[dict[str, Any]]:
        folder, output = run(ranks)
        files = [folder / f"{case.replace('/', '.')}.{rank}.json" for rank in range(ranks)]
        if not all(one.exists() for one in files):
            pytest.fail(f"{case} did not come to its end on all ranks:\n{output[-3000:]}")
        said = [json.loads(one.read_text()) for one in files]
        errors = [one["error"] for one in said if "error" in one]
        assert not errors, errors[0]
        return said

    return found


def _torchrun(ranks: int, folder: Path) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--local-addr", "127.0.0.1", "--nproc-per-node", str(ranks)]
    loopback = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    environment = {**os.environ, **loopback, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*command, str(WORKER), str(folder)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as running:
        try:
            return running.communicate(timeout=SECONDS)[0]
        except subprocess.TimeoutExpired:
            running.terminate()  # torchrun takes its workers along
            return running.communicate()[0]


def agreed(said: list[dict[str, Any]]) -> dict[str, Any]:
    """What all ranks found alike: every norm bit by bit, every decision, the first suspect."""
    told = ("norms", "clipped", "skipped", "by", "suspects", "scale")
    for other in said[1:]:
        assert {key: other.get(key) for key in told} == {key: said[0].get(key) for key in told}
    return said[0]


def worst(said: list[dict[str, Any]], key: str) -> float:
    return max(one[key] for one in said)


# --- Clipping -------------------------------------------------------------------------------------


@places()
def test_norms_and_training_are_those_of_one_process(
    outcome: Outcome, ranks: int, layout: str
) -> None:
    said = outcome(ranks, f"follows/{layout}")
    assert agreed(said)["clipped"] == [True] * STEPS
    assert worst(said, "norm_error") <= 1e-12  # asked: 1e-6
    assert worst(said, "parameter_error") <= SUMS


@places(two=but(TWO, *PARTLY))
def test_a_fused_optimizer_clips_in_its_kernel_alike(
    outcome: Outcome, ranks: int, layout: str
) -> None:
    said = outcome(ranks, f"follows-fused/{layout}")
    assert agreed(said)["clipped"] == [True] * STEPS
    assert worst(said, "norm_error") <= 1e-6
    assert worst(said, "parameter_error") <= DIVISOR


@places()
def test_one_collective_for_each_set_of_ranks(outcome: Outcome, ranks: int, layout: str) -> None:
    wanted = {"ddp": 0, "fsdp1-unsharded": 0, "fsdp2-tp": 2, "tp-sequence": 1 + PARTIAL_SUMS}
    said = outcome(ranks, f"follows/{layout}")
    assert [one["collectives"] for one in said] == [wanted.get(layout, 1)] * ranks


@places()
def test_a_guard_with_nothing_to_do_changes_no_bit(
    outcome: Outcome, ranks: int, layout: str
) -> None:
    assert all(one["equal"] for one in outcome(ranks, f"idles/{layout}"))


@places(two=("ddp", "fsdp1", "fsdp2", "tp"), four=())
def test_a_fused_guard_with_nothing_to_do_changes_no_bit(
    outcome: Outcome, ranks: int, layout: str
) -> None:
    assert all(one["equal"] for one in outcome(ranks, f"idles-fused/{layout}"))


# --- Skipping -------------------------------------------------------------------------------------


def skipped_together(said: list[dict[str, Any]], tolerance: float, by: str) -> None:
    """All ranks skipped the broken step and no other, and went on as one process would."""
    told = agreed(said)
    assert told["skipped"] == [step == BROKEN for step in range(STEPS)]
    assert told["by"][BROKEN] == [by]
    assert worst(said, "parameter_error") <= tolerance


@places(two=but(TWO, *EQUAL), four=but(FOUR, "hsdp"))  # a replica is not asked what befell it alone
@pytest.mark.parametrize("value", ["inf", "nan"])
def test_what_is_broken_on_one_rank_is_skipped_by_all(
    outcome: Outcome, ranks: int, layout: str, value: str
) -> None:
    said = outcome(ranks, f"breaks-{value}/{layout}")
    fused = value == "nan" and layout not in PARTLY
    skipped_together(said, DIVISOR if fused else SUMS, "skip_nonfinite")


@places(two=but(TWO, *TENSOR), four=but(FOUR, "fsdp2-tp"))
def test_an_infinite_loss_on_one_rank_is_skipped_by_all(
    outcome: Outcome, ranks: int, layout: str
) -> None:
    skipped_together(outcome(ranks, f"breaks-in-backward/{layout}"), SUMS, "skip_nonfinite")


@places(two=PARTLY, four=())
def test_beside_shards_so_is_what_every_rank_holds_whole(
    outcome: Outcome, ranks: int, layout: str
) -> None:
    skipped_together(outcome(ranks, f"breaks-last/{layout}"), SUMS, "skip_nonfinite")


# --- Scaled gradients -----------------------------------------------------------------------------


@places(two=("fsdp1", "fsdp2", "tp"), four=())
@pytest.mark.parametrize("how", ["scales", "scales-unscaled"])
def test_a_scaler_and_a_guard_go_together(
    outcome: Outcome, ranks: int, layout: str, how: str
) -> None:
    said = outcome(ranks, f"{how}/{layout}")
    told = agreed(said)
    assert told["scale"] == 512.0  # halved once
    assert told["clipped"] == [True] * (STEPS - 1)  # the scaler did not call the broken step
    assert worst(said, "parameter_error") <= SUMS


@places(two=("fsdp2", "tp"), four=())
@pytest.mark.parametrize("how", ["scales-fused", "scales-fused-unscaled"])
def test_a_scaler_a_fused_optimizer_and_a_guard_go_together(
    outcome: Outcome, ranks: int, layout: str, how: str
) -> None:
    said = outcome(ranks, f"{how}/{layout}")
    assert said[0]["scale"] == 512.0
    skipped_together(said, DIVISOR, "scaler")


# --- Other policies -------------------------------------------------------------------------------


@places(two=("fsdp2", "fsdp2-uneven", "tp", "tp-sequence"), four=("fsdp2-tp",))
@pytest.mark.parametrize("policy", ["agc", "adagc", "value"])
def test_policies_for_parts_do_what_they_do_on_one_process(
    outcome: Outcome, ranks: int, layout: str, policy: str
) -> None:
    said = outcome(ranks, f"{policy}/{layout}")
    assert any(agreed(said)["clipped"])
    assert said[0]["clipped"] == said[0]["clipped_alone"]
    assert worst(said, "parameter_error") <= SUMS


# --- Gradients that are missing, sparse or flat ---------------------------------------------------


@places(two=("fsdp2", "tp-part"), four=())
@pytest.mark.parametrize("policy", ["clip_norm", "clip_agc"])
@pytest.mark.parametrize("which", ["one", "all"])
def test_a_rank_without_a_gradient_keeps_nobody_waiting(
    outcome: Outcome, ranks: int, layout: str, policy: str, which: str
) -> None:
    told = agreed(outcome(ranks, f"lacks-{which}-{policy}/{layout}"))
    assert told["clipped"] == [True] * STEPS


def test_a_layer_that_one_rank_does_not_use_is_no_trouble(outcome: Outcome) -> None:
    assert agreed(outcome(2, "unused/ddp"))["clipped"] == [True] * STEPS


def test_sparse_gradients_are_clipped_like_dense_ones(outcome: Outcome) -> None:
    said = outcome(2, "sparse/ddp")
    assert worst(said, "norm_error") <= 1e-12
    assert worst(said, "parameter_error") <= 1e-12


def test_fsdp1_is_refused_where_its_ranks_or_rows_are_unknown(outcome: Outcome) -> None:
    for said in outcome(2, "refuses"):
        assert len(said) == 4
        for case, sentence in said.items():
            assert ("model=model" if case.startswith("no model") else "fully_shard") in sentence
