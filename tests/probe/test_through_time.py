"""Follow the gradient through time, and compare it with the slow way and with closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from steadygrad._check import Setup, trace
from steadygrad.probe.subject import Subject, rng_states
from steadygrad.probe.through_time import recurrent_slope, slope_of, through_time


class Reader(nn.Module):
    """Reads a sequence and answers from its last state, from all, or from the mean."""

    def __init__(self, rnn: nn.RNNBase, read: str = "last") -> None:
        super().__init__()
        self.rnn, self.read = rnn, read
        self.head = nn.Linear(rnn.hidden_size * (2 if rnn.bidirectional else 1), 2)

    def forward(self, x: Tensor) -> Tensor:
        out, state = self.rnn(x)
        if not self.rnn.batch_first:
            out = out.transpose(0, 1)
        if self.read == "state":
            return self.head((state[0] if isinstance(state, tuple) else state)[-1])
        return self.head({"last": out[:, -1], "all": out, "mean": out.mean(1)}[self.read])


class Packed(nn.Module):
    """Reads sequences of different lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(4, 16, batch_first=True), nn.Linear(16, 2)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.head(self.rnn(packed)[1][-1])


class Loop(nn.Module):
    """Calls a cell once for each step."""

    def __init__(self, cell: nn.RNNCellBase) -> None:
        super().__init__()
        self.cell, self.head = cell, nn.Linear(cell.hidden_size, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


class Patches(nn.Module):
    """Calls one layer for each part of the input, without a chain."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.stack([self.layer(one) for one in x.unbind(1)]).mean(0))


def subject_of(model: nn.Module, *inputs: Tensor) -> Subject:
    return trace(model, Setup(lambda m: m(*inputs), None, None, 0), rng_states())


def row_of(model: nn.Module, *inputs: Tensor) -> dict[str, float]:
    ((_, row),) = through_time(subject_of(model, *inputs)).rows
    return row


def sequence(steps: int) -> Tensor:
    return torch.randn(8, steps, 4)


def test_an_lstm_that_multiplies_by_its_forget_gate_has_that_factor() -> None:
    """With zero weights dc_T / dc_t is sigmoid(b_f) per step (theory: 0.8808 for b_f = 2)."""
    lstm = nn.LSTM(4, 8)
    with torch.no_grad():
        lstm.weight_hh_l0.zero_()
        lstm.bias_hh_l0.zero_()
        lstm.bias_ih_l0.zero_()
        lstm.weight_ih_l0[8:16].zero_()
        lstm.bias_ih_l0[8:16] = 2.0
    slope = recurrent_slope(lstm, torch.randn(100, 4, 4) * 1e-3)
    assert slope.metrics["time_factor"] == pytest.approx(1 / (1 + math.exp(-2)), rel=1e-3)


def test_a_linear_recurrence_has_the_factor_of_its_matrix() -> None:
    rnn = nn.RNN(4, 16, nonlinearity="relu", batch_first=True)
    with torch.no_grad():
        rnn.weight_hh_l0.copy_(1.1 * torch.eye(16))
        rnn.bias_ih_l0.fill_(50.0)  # every unit is in ReLU's linear part
    slope = recurrent_slope(rnn, torch.randn(60, 4, 4))
    assert slope.metrics["time_factor"] == pytest.approx(1.1, rel=1e-6)
    assert slope.metrics["time_decades"] == pytest.approx(59 * math.log10(1.1), rel=1e-6)


@pytest.mark.parametrize(("kind", "factor"), [(nn.RNN, 0.57), (nn.LSTM, 0.63), (nn.GRU, 0.65)])
def test_the_default_cells_forget_as_measured(kind: type[nn.RNNBase], factor: float) -> None:
    row = row_of(Reader(kind(4, 64, batch_first=True)), sequence(100))
    assert row["time_factor"] == pytest.approx(factor, abs=0.07)
    assert row["time_steps"] == 100


@pytest.mark.parametrize("options", [{"batch_first": True}, {}, {"num_layers": 2}])
def test_every_layout_is_read(options: dict[str, object]) -> None:
    x = sequence(60)
    row = row_of(
        Reader(nn.LSTM(4, 16, **options)), x if options.get("batch_first") else x.transpose(0, 1)
    )
    assert 0.5 < row["time_factor"] < 0.8
    assert row["time_travels"] == 1


def test_both_directions_are_read() -> None:
    row = row_of(Reader(nn.GRU(4, 16, batch_first=True, bidirectional=True)), sequence(60))
    assert 0.5 < row["time_factor"] < 0.8


def test_a_packed_sequence_is_read_at_its_longest() -> None:
    row = row_of(Packed(), sequence(60), torch.tensor([60, 20, 30, 60, 5, 7, 9, 11]))
    assert row["time_steps"] == 60
    assert row["time_travels"] == 1


@pytest.mark.parametrize(("read", "travels"), [("last", 1), ("state", 1), ("all", 0), ("mean", 0)])
def test_it_is_known_where_the_loss_looks(read: str, travels: float) -> None:
    for kind in (nn.LSTM, nn.GRU):
        row = row_of(Reader(kind(4, 16, batch_first=True), read), sequence(60))
        assert row["time_travels"] == travels


@pytest.mark.parametrize("cell", [nn.RNNCell(4, 32), nn.GRUCell(4, 32), nn.LSTMCell(4, 32)])
def test_a_cell_in_a_loop_forgets_like_its_fused_kin(cell: nn.RNNCellBase) -> None:
    row = row_of(Loop(cell), sequence(80))
    assert 0.4 < row["time_factor"] < 0.8
    assert row["time_steps"] == 80


def test_a_loop_of_a_thousand_steps_is_read_where_it_has_not_underflown() -> None:
    row = row_of(Loop(nn.RNNCell(4, 32)), sequence(1000))
    assert row["time_decades"] < -150


def test_separate_calls_are_no_time() -> None:
    assert through_time(subject_of(Patches(), sequence(20))).rows == []


def test_a_network_without_recurrence_has_nothing_to_show() -> None:
    readings = through_time(subject_of(nn.Linear(4, 4), torch.randn(8, 4)))
    assert readings.rows == []
    assert readings.facts["time"]["looked_at"] == []


def test_the_slope_survives_zeros_and_infinities() -> None:
    norms = 0.5 ** torch.arange(50).double().numpy()[::-1]
    norms[7], norms[9] = 0.0, math.inf
    assert slope_of(norms).fall == pytest.approx(math.log(2))


def test_the_random_generator_and_the_module_stay_as_they_were() -> None:
    model = Reader(nn.LSTM(4, 16, num_layers=2, dropout=0.3, batch_first=True))
    subject = subject_of(model, sequence(30))
    before = torch.get_rng_state()
    through_time(subject)
    assert torch.equal(before, torch.get_rng_state())
    assert {one.dtype for one in model.parameters()} == {torch.float32}
    assert all(one.grad is None for one in model.parameters())
