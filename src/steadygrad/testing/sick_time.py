"""Patients whose gradient grows or shrinks over time, in recurrent networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from steadygrad.testing import nets
from steadygrad.testing.case import Case, Patient, sick
from steadygrad.testing.setup import adam, on_digits, on_sequences, without_loss


class Shared(nn.Module):
    """One linear layer applied again and again."""

    def __init__(self, times: int, gain: float) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)
        self.head = nn.Linear(64, 10)
        self.times = times
        nets.fill(self, nets.orthogonal(gain))

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores [batch, classes]."""
        for _ in range(self.times):
            x = torch.tanh(self.layer(x))
        scores: Tensor = self.head(x)
        return scores


def _recurrent(model: nn.Module, gain: float) -> nn.Module:
    """Set the hidden-to-hidden matrix of every recurrent layer to gain times an orthogonal one."""
    for name, parameter in model.named_parameters():
        if "weight_hh" in name:
            nn.init.orthogonal_(parameter, gain)
    return model


def _rnn(length: int, gain: float | None = None, act: str = "tanh") -> Case:
    model = nets.Recurrent(nn.RNN(4, 32, nonlinearity=act, batch_first=True), 32)
    return on_sequences(model if gain is None else _recurrent(model, gain), length, adam(1e-2))


def _gated(rnn: nn.RNNBase, length: int) -> Case:
    return on_sequences(nets.Recurrent(rnn, 32), length, adam(1e-2))


def _loop(length: int, gain: float | None = None) -> Case:
    model = nets.Loop(nn.RNNCell(4, 32), 32)
    return on_sequences(model if gain is None else _recurrent(model, gain), length, adam(1e-2))


PATIENTS: tuple[Patient, ...] = (
    sick(
        "rnn-200-steps",
        "G107",
        "rnn",
        lambda: _rnn(200),
        lambda: _rnn(5),
        "nn.RNN's own init keeps 0.57 of the gradient per step; the loss looks at the last",
    ),
    sick(
        "rnn-200-steps-without-loss",
        "G107",
        "rnn",
        lambda: without_loss(_rnn(200)),
        None,
        "the same, seen from the inputs alone",
    ),
    sick(
        "lstm-300-steps",
        "G107",
        "rnn",
        lambda: _gated(nn.LSTM(4, 32, batch_first=True), 300),
        lambda: _gated(nn.LSTM(4, 32, batch_first=True), 5),
        "forget gates start at a half: nothing is left after ten steps (Tallec 2018)",
    ),
    sick(
        "gru-300-steps",
        "G107",
        "rnn",
        lambda: _gated(nn.GRU(4, 32, batch_first=True), 300),
        lambda: _gated(nn.GRU(4, 32, batch_first=True), 5),
        "update gates start at a half",
    ),
    sick(
        "cell-in-a-loop-100-steps",
        "G107",
        "cell",
        lambda: _loop(100),
        lambda: _loop(5),
        "nn.RNNCell in a Python loop forgets as nn.RNN does",
    ),
    sick(
        "relu-rnn-gain-1.7",
        "G106",
        "rnn",
        lambda: _rnn(80, 1.7, "relu"),
        lambda: _rnn(5, 1.0, "relu"),
        "the recurrent matrix multiplies the state by more than one at every step",
    ),
    sick(
        "tanh-rnn-gain-4",
        "G106 G302",
        "rnn",
        lambda: _rnn(60, 4.0),
        lambda: _rnn(5, 1.0),
        "a large recurrent matrix under tanh: chaotic or saturated over time",
    ),
    sick(
        "shared-layer-40-times",
        "G107 G102 G201",
        "layer",
        lambda: on_digits(Shared(40, 0.6), step=adam()),
        lambda: on_digits(Shared(40, 1.0), step=adam()),
        "one layer applied forty times keeps 0.6 of everything each time",
    ),
    sick(
        "shared-layer-grows",
        "G106 G101 G202",
        "layer",
        lambda: on_digits(Shared(40, 4.0), step=adam()),
        lambda: on_digits(Shared(40, 1.0), step=adam()),
        "one layer applied forty times, chaotic each time",
    ),
)
