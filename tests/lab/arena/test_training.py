"""Attempts: real networks, named and of the user's own, that learn, diverge, or raise."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from steadygrad.lab.arena.asking import asked, check_grid, fitting
from steadygrad.lab.arena.board import Board
from steadygrad.lab.arena.contestants import ACTIVATIONS, ARCHITECTURES, INITS, OPTIMIZERS
from steadygrad.lab.arena.grid import Attempt, Cell, Contestant, Grid, Schedule, Score, Setting
from steadygrad.lab.arena.playing import Died, player
from steadygrad.lab.arena.rounds import play_rounds
from steadygrad.lab.arena.store import FILE, Store, key
from steadygrad.lab.arena.training import performed

pytest.importorskip("sklearn")

MINE = """
import math, torch, steadygrad as sg
from torch import nn

def init(model, loss):
    assert torch.isfinite(loss(model))
    for one in model.modules():
        if isinstance(one, nn.Linear):
            nn.init.orthogonal_(one.weight, math.sqrt(2))
            nn.init.zeros_(one.bias)

def swish(x):
    return x * torch.sigmoid(x)

def block(width, activation, norm):
    return nn.Sequential(nn.Linear(width, width), norm(width), activation())

def optimizer(model, lr):
    return torch.optim.SGD(model.parameters(), lr)

def setup(depth=2):
    layers = [one for _ in range(depth) for one in (nn.Linear(8, 8), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(8, 1))
    batches = [(x, x[:, :1]) for x in torch.randn(4, 16, 8)]
    loss = lambda m, batch: nn.functional.mse_loss(m(batch[0]), batch[1])
    return sg.Setup(model, torch.optim.SGD(model.parameters(), 0.1), loss, batches)

def raises(model, loss):
    raise KeyError("no such layer")

def nan(model, loss):
    for one in model.parameters():
        nn.init.constant_(one, math.nan)
"""


@pytest.fixture
def mine(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(MINE)
    return str(tmp_path / "mine.py")


def attempt(depth: int = 3, task: str = "digits", lr: float = 0.01, steps: int = 20, **of: str):
    names = {"architecture": "plain", "activation": "relu", "norm": "none"}
    contestant = Contestant(**(names | {"init": "he", "optimizer": "adam"} | of))
    return Attempt(Cell(Setting(depth, 16), contestant), task, lr, 0, steps)


def test_an_attempt_is_repeatable_and_leaves_the_random_state_alone() -> None:
    state = torch.get_rng_state()
    first, again = performed(attempt()), performed(attempt())
    assert (first.end, first.decades) == (again.end, again.decades)
    assert torch.equal(state, torch.get_rng_state())
    assert first.end < first.first


@pytest.mark.parametrize("init", INITS)
def test_every_initialisation_trains_or_says_why_it_does_not_fit(init: str) -> None:
    score = performed(attempt(activation="tanh", architecture="residual", init=init, steps=5))
    assert math.isfinite(score.end) or score.why.startswith("unfit: "), score
    assert score.why == "" or init == "deep-norm"


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_is_played(activation: str) -> None:
    assert performed(attempt(activation=activation, init="default", steps=3)).why == ""


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_is_played_and_its_gradient_read(architecture: str) -> None:
    score = performed(attempt(architecture=architecture, steps=3))
    assert score.why == ""
    assert math.isfinite(score.decades)


@pytest.mark.parametrize("norm", ["batch", "layer", "rms"])
def test_every_norm_is_played(norm: str) -> None:
    assert performed(attempt(architecture="residual", norm=norm, steps=3)).why == ""


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_learns(optimizer: str) -> None:
    if optimizer == "muon" and "Muon" not in dir(torch.optim):
        pytest.skip("torch 2.9 brought Muon")
    score = performed(attempt(optimizer=optimizer, init="level", lr=0.01, steps=20))
    assert score.end < 0.9 * score.first


def test_a_depth_of_he_keeps_the_gradient_and_of_default_loses_it() -> None:
    kept, lost = (performed(attempt(20, init=one, steps=1)).decades for one in ("level", "default"))
    assert abs(kept) < 2 < 5 < -lost


def test_a_gain_multiplies_the_weights() -> None:
    one = attempt(10, init="level", steps=1)
    half = Attempt(Cell(Setting(10, 16, 0.5), one.cell.contestant), "digits", 0.01, 0, 1)
    apart = performed(one).decades - performed(half).decades
    assert apart == pytest.approx(10 * math.log10(2), abs=1.0), "one half for each block"


def test_a_rate_that_is_too_high_diverges_and_is_no_error() -> None:
    score = performed(attempt(optimizer="sgd", lr=1e12))
    assert score.end == math.inf
    assert score.why.startswith("diverged at step ")


def test_functions_of_the_users_own_compete(mine: str) -> None:
    score = performed(
        attempt(
            init=f"{mine}:init", activation=f"{mine}:swish", architecture=f"{mine}:block",
            norm="layer", optimizer=f"{mine}:optimizer", lr=0.1,
        )
    )  # fmt: skip
    assert score.why == ""
    assert score.end < score.first


def test_a_setup_of_the_users_own_is_trained_with_other_parts(mine: str) -> None:
    grid, _ = asked(f"{mine}:setup", {"depths": "2", "activations": "gelu", "norms": "layer"})
    check_grid(grid)
    for cell in fitting(grid):
        score = performed(Attempt(cell, grid.task, 0.01, 0, 10))
        assert score.why == "", score
        assert math.isnan(score.decades)


def test_what_a_users_function_raises_is_its_score(mine: str) -> None:
    assert performed(attempt(init=f"{mine}:raises")).why == "failed: KeyError: 'no such layer'"


def test_nan_in_the_weights_is_a_divergence_at_once(mine: str) -> None:
    assert performed(attempt(init=f"{mine}:nan")).why == "diverged at step 0"


# --- The store -----------------------------------------------------------------------------------


def test_a_store_gives_back_what_it_was_given(tmp_path: Path) -> None:
    scores = [Score(0.5, 2.3, "", -1.5, 0.1), Score(math.inf, 2.3, "diverged at step 3")]
    store = Store(tmp_path)
    for lr, score in enumerate(scores, 1):
        store.keep(attempt(lr=lr), score)
    store.close()
    again = Store(tmp_path)
    assert again.score(attempt(lr=1)) == scores[0]
    assert again.score(attempt(lr=2)).end == math.inf
    assert again.score(attempt(lr=3)) is None
    again.close()


def test_a_store_survives_a_line_that_was_cut_off(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.keep(attempt(lr=1), Score(0.5))
    store.keep(attempt(lr=2), Score(0.6))
    store.close()
    whole = (tmp_path / FILE).read_bytes()
    for cut in range(1, 60, 7):
        (tmp_path / FILE).write_bytes(whole[:-cut])
        store = Store(tmp_path)
        store.keep(attempt(lr=3), Score(0.7))
        store.close()
        again = Store(tmp_path)
        assert again.score(attempt(lr=1)).end == 0.5
        assert again.score(attempt(lr=3)).end == 0.7
        again.close()


@pytest.mark.parametrize(
    "line", [b"[]", b'{"key": 1}', b'{"key": {}, "score": {"end": "x"}}', b"\xff"]
)
def test_foreign_lines_are_passed_over(tmp_path: Path, line: bytes) -> None:
    (tmp_path / FILE).write_bytes(line + b"\n")
    Store(tmp_path).close()


def test_an_attempt_is_another_when_the_users_file_changes(mine: str) -> None:
    one = attempt(init=f"{mine}:init")
    before = key(one)
    Path(mine).write_text(MINE + "\n# other\n")
    assert key(one) != before


def test_what_failed_is_made_again_next_time(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.keep(attempt(), Score(math.inf, why="failed: KeyError: 'x'"))
    assert store.score(attempt()) is not None
    store.close()
    again = Store(tmp_path)
    assert again.score(attempt()) is None
    again.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_ends_the_competition_and_keeps_the_board(tmp_path: Path) -> None:
    grid = Grid((1,), (4,), activations=("relu",), inits=("default",), optimizers=("adam",))
    board = Board("digits", Schedule(40, 2), grid.cells, math.log(10))
    store = Store(tmp_path)
    store.close()
    store._file = Path("/dev/full").open("wb", buffering=0)  # noqa: SIM115 - the store closes it
    with pytest.raises(Died, match="No space left"):
        play_rounds(board, (), player(board, store, None, lambda _: None))
    store.close()
    assert len(board.scores) == 1


# --- Together ------------------------------------------------------------------------------------


def test_an_interrupted_competition_goes_on_and_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    grid = Grid((2,), (8,), activations=("relu",), inits=("he", "level"), optimizers=("adam",))

    def play(directory: Path, stop_after: float, executor=None) -> Board:
        board = Board("digits", Schedule(40, 2), grid.cells, math.log(10))
        store = Store(directory)
        told: list[float] = []

        def tell(work: float) -> None:
            told.append(work)
            if len(told) > stop_after:
                raise KeyboardInterrupt

        try:
            play_rounds(board, (), player(board, store, executor, tell))
        except KeyboardInterrupt:
            pass
        finally:
            store.close()
        return board

    part = play(tmp_path / "a", 6)
    assert 0 < len(part.scores) < 12
    lines = (tmp_path / "a" / FILE).read_text().count("\n")
    assert lines == len(part.scores)
    resumed = play(tmp_path / "a", math.inf)
    with ThreadPoolExecutor(1) as executor:
        whole = play(tmp_path / "b", math.inf, executor)
    assert {one: score.end for one, score in resumed.scores.items()} == {
        one: score.end for one, score in whole.scores.items()
    }
