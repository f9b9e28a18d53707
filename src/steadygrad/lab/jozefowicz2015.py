"""Jozefowicz 2015: the forget gate's bias sets how long an LSTM remembers."""

from __future__ import annotations

import torch
from torch import nn

from steadygrad.core.theory import horizon, lstm_cell_ratio
from steadygrad.lab.experiment import Curve, Figure, Plan, Result, experiment, near

BIASES = (0.0, 1.0, 2.0, 3.0)


@experiment(
    "jozefowicz2015",
    claim="An LSTM's cell gradient shrinks by sigmoid(b_f) in each step: a forget bias of 1 "
    "doubles and more what the default remembers",
    published="a bias of 1 or 2 in place of 0, where the gradient vanishes by 1/2 a step (sec. "
    "2.2)",
    tolerance="1e-5 of sigmoid(b_f): the identity is exact when no input reaches the gates, so "
    "only rounding is left",
    source="Jozefowicz, Zaremba & Sutskever 2015, An empirical exploration of recurrent network "
    "architectures; Gers, Schmidhuber & Cummins 2000, Learning to forget",
)
def jozefowicz2015(plan: Plan) -> Result:
    """Take d c_T / d c_0 of torch's LSTM cell at four forget biases, all its weights zero.

    With weights the gates vary about sigmoid(b_f), and the ratio with them.
    """
    steps = plan.pick(5, 50, 200)
    measures, rows, curves = [], [], []
    for bias in plan.each(BIASES):
        norms = _norms(bias, steps)
        ratio = (norms[-1] / norms[0]) ** (1 / (steps - 1))
        wanted = lstm_cell_ratio(bias)
        measures.append(near(f"gradient ratio per step, b_f = {bias:g}", ratio, wanted, 1e-5))
        rows.append([bias, ratio, wanted, horizon(ratio)])
        curves.append(Curve(f"b_f = {bias:g}", range(1, steps + 1), norms))
    header = ("forget bias", "gradient ratio per step", "sigmoid(b_f)", "horizon, steps")
    return Result(measures, header, rows, Figure("steps back", "cell gradient", curves, "y"))


def _norms(bias: float, steps: int) -> list[float]:
    """Return |d c_T / d c_{T - k}| for k = 1 to steps."""
    cell = nn.LSTMCell(4, 8).double()
    for parameter in cell.parameters():
        nn.init.zeros_(parameter)
    cell.bias_ih.detach()[8:16] = bias
    h, c = torch.zeros(1, 8, dtype=torch.float64), torch.ones(1, 8, dtype=torch.float64)
    cells = [c.requires_grad_()]
    for _ in range(steps):
        h, c = cell(torch.zeros(1, 4, dtype=torch.float64), (h, c))
        cells.append(c)
    slopes = torch.autograd.grad(c.sum(), cells[:-1])
    return [float(g.norm()) for g in reversed(slopes)]
