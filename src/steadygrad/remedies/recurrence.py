"""Recurrent weights and biases that carry a gradient through time."""

from __future__ import annotations

import math

from steadygrad.remedies._draws import gates_of
from steadygrad.remedies._layers import recurrent_of
from steadygrad.remedies._parts import parts_of
from steadygrad.remedies._patch import carry_out
from steadygrad.remedies.remedy import Change, Scene, Unfit, remedy

LONG = 100  # steps, where the length of the sequences is not known; chosen by us


@remedy("orthogonal-recurrence", "initialisation", cures=("G107", "G106"), size=2)
def orthogonal_recurrence(scene: Scene) -> Change:
    """Draw the matrices from state to state orthogonal, one for each gate.

    **When it fails.** tanh still takes its slope at each step, so that plain recurrent layers need
    small inputs as well; over hundreds of steps a gated cell with `chrono-init` holds better.

    **Reference.** Saxe 2014, section 3; Le 2015 (arXiv 1504.00941) for the identity instead.
    """
    lines: list[str] = []
    for name, cell in recurrent_of(scene.model).items():
        for key, weight in cell.named_parameters(prefix=name, recurse=False):
            if "weight_hh" in key and gates_of(cell) and weight.dtype.itemsize >= 4:
                lines += [
                    f"    for gate in model.get_parameter({key!r}).chunk({gates_of(cell)}):",
                    "        nn.init.orthogonal_(gate)",
                ]
    if not lines:
        raise Unfit("This model has no recurrent layer of torch's with trainable weights.")
    patch = "\n".join(["with torch.no_grad():", *lines])
    carry_out(scene, patch)
    return Change(patch)


@remedy("chrono-init", "initialisation", cures=("G107",), size=3)
def chrono_init(scene: Scene) -> Change:
    """Draw the forget biases of LSTMs so that memories last from 1 to T steps.

    b_f = log U(1, T - 1) and b_i = -b_f, all other biases of the recurrent side zero; T is the
    number of steps of the first batch.

    **When it fails.** Tasks that need no long memory learn slower with it. Only torch's LSTM and
    LSTMCell are known; in a loop over a cell T is taken for 100.

    **Reference.** Tallec & Ollivier 2018, section 3, equation 16.
    """
    steps = _steps(scene)
    lines: list[str] = []
    for name, cell in recurrent_of(scene.model).items():
        if gates_of(cell) == 4 and cell.bias:
            for key, _ in cell.named_parameters(prefix=name, recurse=False):
                if "bias_hh" in key:
                    lines += _lines(key, cell.hidden_size, steps.get(name, LONG))
    if not lines:
        raise Unfit("This model has no LSTM of torch's with trainable biases.")
    patch = "\n".join(["with torch.no_grad():", *(f"    {line}" for line in lines)])
    carry_out(scene, patch)
    return Change(patch)


def _lines(recurrent: str, hidden: int, steps: int) -> list[str]:
    """Lines for one layer: torch's gates stand in the order input, forget, cell, output."""
    entering = recurrent.replace("bias_hh", "bias_ih")
    longest = math.floor(max(steps - 1, 2))
    return [
        f"forget = torch.empty({hidden}).uniform_(1, {longest}).log()",
        f"model.get_parameter({entering!r}).zero_()",
        f"bias = model.get_parameter({recurrent!r}).zero_()",
        f"bias[:{hidden}], bias[{hidden}:{2 * hidden}] = -forget, forget",
    ]


def _steps(scene: Scene) -> dict[str, int]:
    """How many steps each recurrent layer was given, where a pass can be made."""
    found: dict[str, int] = {}
    cells = recurrent_of(scene.model)
    for part in parts_of(scene):
        cell = cells.get(part.name)
        if cell is not None and part.entered is not None and part.entered.dim() == 3:
            first = bool(getattr(cell, "batch_first", False))
            found[part.name] = part.entered.shape[1 if first else 0]
    return found
