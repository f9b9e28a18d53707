"""One attempt: make a network, draw it, train it, and say how it went."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import islice

import torch
from torch import nn
from torch.optim import Optimizer

from steadygrad._cure import Setup, seeded
from steadygrad.core.trial import Outcome
from steadygrad.lab.arena.contestants import (
    Loss,
    is_file,
    load,
    optimizers_of,
    remedies_of_init,
)
from steadygrad.lab.arena.grid import Attempt, Cell, Score
from steadygrad.lab.arena.nets import decades
from steadygrad.lab.arena.tasks import made, with_first
from steadygrad.remedies.applied import BY_NAME, Applied
from steadygrad.remedies.instead import Instead
from steadygrad.remedies.remedy import Scene, Unfit
from steadygrad.replay.randomness import kept, seed_all


def performed(attempt: Attempt) -> Score:
    """Make an attempt, on one thread and under its own random state.

    Whatever the code of a contestant raises ends this attempt alone, and is its score.
    """
    begin = time.thread_time()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with seeded(attempt.seed):
            losses, gradient = _trained(attempt)
    except Unfit as reason:
        return Score(math.inf, why=f"unfit: {reason}")
    except Exception as fault:  # a contestant is anybody's code
        return Score(math.inf, why=f"failed: {type(fault).__name__}: {fault}")
    finally:
        torch.set_num_threads(threads)
    seconds = time.thread_time() - begin
    outcome = Outcome(tuple(losses))
    end, first = outcome.end(attempt.steps), outcome.start
    diverged = f"diverged at step {len(losses) - 1}" if not math.isfinite(losses[-1]) else ""
    return Score(end, first, diverged, gradient, seconds)


def _trained(attempt: Attempt) -> tuple[list[float], float]:
    """Return the losses, up to the first that is not finite, and the gradient's decades."""
    with kept():
        setup, applied = made(attempt.task, attempt.cell, attempt.seed)
    first, setup = with_first(setup)

    def loss(model: nn.Module) -> torch.Tensor:
        with kept():  # dropout draws the same at each call, and moves nothing
            return setup.loss(model, first)

    functions = {} if applied is None else applied.functions
    with Instead(functions) if functions else nullcontext():
        with kept():
            seed_all(attempt.seed)
            draw(attempt.cell, setup.model, setup.optimizer, loss)
        optimizers = optimizers_of(attempt.cell.contestant.optimizer, setup.model, attempt.lr)
        gradient = decades(setup.model, loss)
        return list(_losses(setup, optimizers, attempt.steps, applied)), gradient


def draw(cell: Cell, model: nn.Module, optimizer: Optimizer, loss: Loss) -> None:
    """Initialise a model as the contestant does, then multiply its matrices by the gain."""
    name = cell.contestant.init
    if is_file(name):
        load(name)(model, loss)
    else:
        Applied([BY_NAME[one] for one in remedies_of_init(name)], Scene(model, optimizer, loss))
    if cell.setting.gain != 1.0:
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.detach().mul_(cell.setting.gain)


def _losses(
    setup: Setup, optimizers: list[Optimizer], steps: int, applied: Applied | None
) -> Iterator[float]:
    """Train for some steps and yield the loss of each, the first that is not finite as inf."""
    for step, batch in enumerate(islice(_again(setup), steps)):
        loss = setup.loss(setup.model, batch)
        if not math.isfinite(loss.item()):
            yield math.inf
            return
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            if applied is not None:
                applied.before(optimizer, step)
            optimizer.step()
        yield loss.item()


def _again(setup: Setup) -> Iterator[object]:
    """Batches in order, and from the start again where they can be."""
    while True:
        some = False
        for batch in setup.batches:
            some = True
            yield batch
        if not some:
            return
