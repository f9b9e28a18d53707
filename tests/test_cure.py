"""Remedies are tried on a training, and only what is proven is prescribed."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import steadygrad as sg
from steadygrad._dask import on_dask
from steadygrad._search import Plan, Search, draws, proposals
from steadygrad.core.finding import Advice, Finding, Severity
from steadygrad.core.record import record_of
from steadygrad.core.report import Report
from steadygrad.core.trial import LOST, Arm, Cure, Outcome, Trial
from steadygrad.launch.arm import Job
from steadygrad.launch.cured import Options, cure_script, performed
from steadygrad.remedies.applied import BY_NAME
from steadygrad.remedies.catalogue import REMEDIES
from steadygrad.render.html import html
from steadygrad.render.json import as_dict
from steadygrad.render.text import text
from steadygrad.render.trials import loss_of
from steadygrad.replay.captured import CannotLook

SICK = """
import os, sys
import torch
from torch import nn
from torch.nn import functional as F

torch.manual_seed(0)
steps, lr = int(sys.argv[1]), float(sys.argv[2])
model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
optimizer = torch.optim.SGD(model.parameters(), lr=lr)
teacher = torch.randn(16, 4)
if os.path.exists("best.pt"):
    torch.load("best.pt")
os.makedirs("out", exist_ok=True)
for step in range(steps):
    x = torch.randn(32, 16)
    optimizer.zero_grad()
    loss = F.mse_loss(model(x), x @ teacher)
    loss.backward()
    optimizer.step()
    torch.save(model.state_dict(), "best.pt")
    with open("log.txt", "a") as log:
        log.write(f"{step}\\n")
    with open("out/last.txt", "w") as last:
        print(step, file=last)
"""


STUBBORN = """
import torch

model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
while True:
    try:
        optimizer.zero_grad()
        (model(torch.randn(8, 4)) - 1).square().mean().backward()
        optimizer.step()
    except:
        print("go on" * 1000)
"""


def _batches() -> Iterator[tuple[Tensor, Tensor]]:
    teacher = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
    while True:
        x = torch.randn(32, 16)
        yield x, x @ teacher


def _loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.mse_loss(model(batch[0]), batch[1])


def _setup(lr: float, scale: float = 1.0) -> sg.Setup:
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    with torch.no_grad():
        for one in model.parameters():
            one.mul_(scale)
    return sg.Setup(model, torch.optim.SGD(model.parameters(), lr=lr), _loss, _batches())


@pytest.fixture(scope="module")
def diverging() -> sg.Report:
    return sg.cure(partial(_setup, 3.0), steps=20, seeds=(0, 1), budget=400)


def test_a_cure_is_proven_on_every_seed_and_its_patch_works(diverging: sg.Report) -> None:
    cure = diverging.cure
    assert cure is not None
    chosen = cure.prescription
    assert chosen is not None
    assert chosen.verdict == "helps"
    assert len(chosen.after) == 2
    assert all(a < b for a, b in zip(chosen.after, chosen.before, strict=True))

    torch.manual_seed(0)
    made = _setup(3.0)
    names: dict[str, Any] = {"model": made.model, "optimizer": made.optimizer, "sg": sg}
    names |= {"torch": torch, "nn": nn, "F": F}
    exec(chosen.patch, names)
    for batch, _ in zip(made.batches, range(20), strict=False):
        names["optimizer"].zero_grad()
        loss = made.loss(made.model, batch)
        loss.backward()
        names["optimizer"].step()
    assert float(loss.detach()) < 100


def test_no_change_and_random_search_are_among_the_trials(diverging: sg.Report) -> None:
    cure = diverging.cure
    assert cure is not None
    assert cure.trials[0].name == "no change"
    assert any(one.random for one in cure.trials)
    assert cure.spent <= 400


def test_a_healthy_training_is_left_alone() -> None:
    report = sg.cure(partial(_setup, 0.1), steps=20, seeds=(0, 1), budget=400)

    assert report.verdict == "healthy"
    assert report.cure is not None
    assert [one.name for one in report.cure.trials] == ["no change"]
    assert report.cure.chosen == ""


def test_what_only_a_trial_can_tell_is_a_finding_too() -> None:
    report = sg.cure(partial(_setup, 1e-6), steps=40, seeds=(0, 1), budget=600)

    assert report.cure is not None
    assert report.cure.chosen
    assert report.verdict == "findings"
    assert report.findings[0].code in ("G402", "G411")


def test_random_numbers_are_as_before() -> None:
    before = torch.get_rng_state()
    sg.cure(partial(_setup, 0.1), steps=8, seeds=(0, 1), budget=400)

    assert torch.equal(before, torch.get_rng_state())


def test_what_raises_in_one_trial_is_one_trial_lost() -> None:
    def setup() -> sg.Setup:
        made = _setup(3.0)

        def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            if any(isinstance(one, nn.LayerNorm) for one in model.modules()):
                raise ValueError("no norms here")
            return _loss(model, batch)

        return sg.Setup(made.model, made.optimizer, loss, made.batches)

    report = sg.cure(setup, steps=12, seeds=(0, 1), budget=400)

    assert report.cure is not None
    assert report.cure.prescription is not None


def test_wrong_arguments_are_told() -> None:
    with pytest.raises(TypeError, match=r"returns a steadygrad\.Setup.*got int"):
        sg.cure(lambda: 3)  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match="two or more"):
        sg.cure(partial(_setup, 0.1), seeds=(0,))
    with pytest.raises(ValueError, match="budget"):
        sg.cure(partial(_setup, 0.1), budget=100)
    with pytest.raises(ValueError, match="8 or more"):
        sg.cure(partial(_setup, 0.1), steps=2)


def test_plans_keep_to_their_budget() -> None:
    for steps in (20, 40, 60):
        plan = Plan(steps, (0, 1, 2), 1000)
        assert plan.least <= 1000
        assert plan.share >= plan.finals + 2 * plan.short


def test_a_findings_own_advice_is_tried_first() -> None:
    found = Finding(
        Severity.risk, "weak", code="G201", try_next=(Advice("lsuv"), Advice("higher-lr"))
    )
    names = [one.name for one in proposals([found], [])]

    assert names[:4] == ["lsuv", "default-lr", "sharpness-lr", "lr-x100"]


class Table:
    """Trainings whose ends are written down: nothing is trained. `ends` [after 8 steps, whole]."""

    def __init__(self, ends: dict[str, tuple[float, float]], bare: float = 2.0) -> None:
        self.ends, self.bare, self.made = ends, bare, list[Arm]()

    def __call__(self, arms: Sequence[Arm]) -> Iterator[tuple[Arm, Outcome]]:
        for arm in arms:
            self.made.append(arm)
            yield arm, self.outcome(arm)

    def outcome(self, arm: Arm) -> Outcome:
        if arm.remedies and arm.name not in self.ends:
            return Outcome(unfit="There is nothing to change.")
        plan = searched.plan
        short, whole = self.ends.get(arm.name, (2.0, self.bare))
        end = short if arm.steps == plan.short else whole
        end += 0.001 * arm.seed
        count = LOST if arm.remedies and not math.isfinite(end) else arm.steps
        return Outcome(tuple(2.0 + (end - 2.0) * (step > 1) for step in range(count)))


searched = Search(lambda _: iter(()), Plan(32, (0, 1), 400))


def _searched(table: Table, names: Sequence[str]) -> Cure:
    searched.run, searched.known, searched.random = table, {}, set()
    searched.untouched()
    searched.search([BY_NAME[one] for one in names])
    return searched.cure()


def test_seeds_stand_in_their_order_whichever_trial_ends_first() -> None:
    class Backwards(Table):
        def __call__(self, arms: Sequence[Arm]) -> Iterator[tuple[Arm, Outcome]]:
            return super().__call__(arms[::-1])

    chosen = _searched(Backwards({"adam": (1.0, 0.1)}), ["adam"]).prescription
    assert chosen is not None
    assert chosen.seeds == (0, 1)
    assert chosen.after == pytest.approx((0.1, 0.101))


def test_kinds_take_turns_and_what_is_unfit_costs_none() -> None:
    table = Table({"lr-x10": (1.9, 1.5), "adam": (1.8, 1.0), "selu": (2.0, 2.0)})
    _searched(table, ["lr-x100", "lr-x10", "lr-x3", "selu", "adam"])
    tried = [one.name for one in table.made if one.remedies]
    assert tried[:5] == ["lr-x100", "selu", "adam", "lr-x10", "lr-x3"]


def test_the_best_is_joined_with_others_and_the_smallest_that_does_is_chosen() -> None:
    ends = {"adam": (1.5, 0.8), "lr-x10": (1.8, 1.8), "selu": (1.9, 1.9), "lr-x10 + adam": (1, 0.2)}
    assert _searched(Table(ends), ["adam", "lr-x10", "selu"]).chosen == "lr-x10 + adam"
    ends["adam"] = (1.5, 0.21)
    assert _searched(Table(ends), ["adam", "lr-x10", "selu"]).chosen == "adam"


def test_what_heals_a_broken_training_is_chosen_alone() -> None:
    broken = math.inf, math.inf
    ends = {"safe-div": (1.9, 1.2), "adam": broken, "selu": broken, "safe-div + adam": (0.5, 0.1)}
    table = Table(ends, bare=math.inf)
    assert _searched(table, ["safe-div", "adam", "selu"]).chosen == "safe-div"
    assert not any(len(one.remedies) > 1 and one.steps == 32 for one in table.made)


def test_a_blind_draw_is_prescribed_only_where_nothing_else_helps() -> None:
    drawn = next(one for one in draws(100, seed=0) if len(one) > 1 and "adam" not in one)
    ends = {"adam": (1.5, 0.8), " + ".join(drawn): (1.0, 0.1)}
    assert _searched(Table(ends), ["adam"]).chosen == "adam"
    ends["adam"] = (2.0, 2.0)
    assert _searched(Table(ends), ["adam"]).chosen == " + ".join(drawn)


@given(
    st.dictionaries(
        st.sampled_from([one.name for one in REMEDIES]),
        st.tuples(*[st.sampled_from([0.1, 0.5, 1.9, 2.0, 9.0, math.inf])] * 2),
    ),
    st.sampled_from([2.0, math.inf]),
)
def test_no_search_spends_more_than_its_budget_or_prescribes_what_is_worse(
    ends: dict[str, tuple[float, float]], bare: float
) -> None:
    table = Table(ends, bare)
    cure = _searched(table, list(ends))
    searched.confirm()
    assert searched.spent <= searched.plan.budget
    if cure.chosen:
        assert ends[cure.chosen][1] < bare


def test_the_table_fits_the_terminal_and_json_tells_all(diverging: sg.Report) -> None:
    drawn = text(diverging, 80)
    table = drawn[drawn.index("remedy ") : drawn.index("paste this")]
    assert max(map(len, table.splitlines())) <= 80
    assert "no change" in table
    assert "helps" in table

    told = json.loads(json.dumps(as_dict(diverging)))
    assert told["cure"]["chosen"]
    (chosen,) = [one for one in told["trials"] if one["chosen"]]
    assert chosen["patch"] == told["cure"]["patch"]
    assert chosen["verdict"] == "helps"


def test_a_loss_of_nothing_has_no_sign() -> None:
    assert [loss_of(one) for one in (0.0, -0.0, 1e-7, -2e22)] == ["0", "0", "1.0e-07", "-2e+22"]


def test_the_page_shows_the_trials_and_the_lines_to_paste(diverging: sg.Report) -> None:
    page = html(diverging)

    assert diverging.cure is not None
    assert f"Paste this once model and optimizer exist: {diverging.cure.chosen}" in page
    assert "against no change" in page


def test_advice_says_what_its_trial_has_shown() -> None:
    trials = (
        Trial((), (0, 1), 60, (2.0, 2.0), (2.0, 2.0), "no effect"),
        Trial(("cross-entropy", "adam"), (0, 1), 60, (2.0, 2.0), (0.1, 0.1), "helps"),
        Trial(("selu",), (0,), 15, (2.0,), (2.0,), "no effect"),
    )
    advice = tuple(map(Advice, ("give-scores", "swap-activation", "revive")))
    found = Finding(Severity.risk, "too far", code="G303", try_next=advice)
    cure = Cure(trials, "cross-entropy + adam")
    told = html(Report("train.py", record_of([]), (found,), cure=cure))

    assert "prescribed: cross-entropy + adam" in told
    assert "tried: no effect" in told
    assert "not verified by a trial" in told


# --- Scripts --------------------------------------------------------------------------------------


def _run(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "steadygrad", "cure", "--workers", "2", *arguments]
    return subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=300)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "sick.py").write_text(SICK)
    return tmp_path


@pytest.mark.slow
def test_a_script_is_cured_and_its_files_are_left_alone(home: Path) -> None:
    options = ("--steps", "12", "--seeds", "2", "--budget", "260", "--format", "json")
    ran = _run(home, *options, "sick.py", "30", "3.0")

    assert ran.returncode == 1, ran.stderr
    told = json.loads(ran.stdout)
    assert told["cure"]["chosen"]
    assert told["findings"][0]["code"] in ("G401", "G412")
    assert sorted(one.name for one in home.iterdir()) == ["sick.py"]
    assert "best.pt" in " ".join(told["cure"]["said"])


def _cured(target: Path, *arguments: str, timeout: float = 60.0) -> sg.Report:
    options = Options(str(target), arguments, steps=8, seeds=2, budget=160, random=False)
    return cure_script(replace(options, timeout=timeout), lambda _: None, lambda _: None)


def test_what_does_not_fit_a_script_is_found_out_without_disturbing_it(home: Path) -> None:
    job = Job(str(home / "sick.py"), ("30", "0.1"), steps=8)
    plain, screened = (performed(replace(job, screens=one), 60.0) for one in (False, True))

    assert "safe-div" in screened.unfit
    assert "standardise" in screened.unfit
    assert not {"adam", "lr-x0.1", "level-init", "layer-norm"} & set(screened.unfit)
    assert screened.outcome.losses == plain.outcome.losses
    assert len(plain.outcome.losses) == 8


def test_a_script_under_torchrun_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")

    with pytest.raises(CannotLook, match="without torchrun"):
        _cured(home / "sick.py", "30", "0.1")


@pytest.mark.long
def test_a_trial_runs_on_a_dask_cluster(home: Path) -> None:
    distributed = pytest.importorskip("distributed")
    job = Job(str(home / "sick.py"), ("30", "0.1"), steps=8)
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
        ) as cluster,
        on_dask(cluster.scheduler_address) as executor,
    ):
        result = executor.submit(performed, job, 120.0).result()

    assert len(result.outcome.losses) == 8
    assert not (home / "best.pt").exists()


def test_a_script_that_the_system_kills_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "killed.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")

    with pytest.raises(CannotLook, match=r"ended by signal 9 \(SIGKILL\): out of memory\?"):
        _cured(tmp_path / "killed.py")


def test_a_script_that_raises_is_told_with_its_line(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("import torch\nraise ValueError('no data')\n")

    with pytest.raises(CannotLook, match=r"got ValueError: no data \(bad.py:2\)"):
        _cured(bad)


def test_a_script_that_reads_standard_input_finds_none(tmp_path: Path) -> None:
    asks = tmp_path / "asks.py"
    asks.write_text("input('how many? ')\n")

    with pytest.raises(CannotLook, match="EOFError"):
        _cured(asks)


def test_a_script_that_hangs_has_its_time(tmp_path: Path) -> None:
    hangs = tmp_path / "hangs.py"
    hangs.write_text("import time\ntime.sleep(600)\n")

    with pytest.raises(CannotLook, match="did not end within 1 s"):
        _cured(hangs, timeout=1.0)


def test_a_script_without_steps_is_told(tmp_path: Path) -> None:
    nothing = tmp_path / "nothing.py"
    nothing.write_text("print('hello')\n")

    with pytest.raises(CannotLook, match="no step of an optimizer"):
        _cured(nothing)
    with pytest.raises(CannotLook, match="got nothing at"):
        _cured(tmp_path / "missing.py")


def test_a_script_that_catches_everything_is_ended_all_the_same(tmp_path: Path) -> None:
    stubborn = tmp_path / "stubborn.py"
    stubborn.write_text(STUBBORN)
    report = _cured(stubborn)

    assert report.cure is not None
    assert report.cure.trials[0].steps == 8
    assert report.cure.spent <= 160


@pytest.mark.slow
def test_an_interrupt_shows_what_is_known_and_leaves_no_process(home: Path) -> None:
    command = [sys.executable, "-m", "steadygrad", "cure", "sick.py", "500", "3.0"]
    process = subprocess.Popen(
        command, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    time.sleep(20)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)

    assert process.returncode in (0, 1, 130), err
    assert "interrupted" in out + err
    assert not os.path.exists(home / "best.pt")
