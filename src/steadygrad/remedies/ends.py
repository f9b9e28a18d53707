"""Take away the activation behind the last layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its customary name

from steadygrad.remedies._parts import Call, Function, Part, parts_of
from steadygrad.remedies._pass import first_loss
from steadygrad.remedies._patch import carry_out, listed
from steadygrad.remedies.instead import Instead
from steadygrad.remedies.remedy import Change, Scene, Unfit, remedy

RELUS = ("relu", "relu6")
BOUNDED = ("tanh", "sigmoid", "hardtanh", "hardsigmoid", "softsign")
LINES = """\
for name in {names}:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, nn.Identity())"""


@remedy("no-last-relu", "data", cures=("G303", "G301"), size=2)
def no_last_relu(scene: Scene) -> Change:
    """Take away a ReLU behind the last layer.

    Scores of classes and targets below zero are out of its reach, and where it is shut there is no
    gradient for the class.

    **When it fails.** Outputs are meant to be above zero, as a count or a variance: softplus is for
    them.

    **Reference.** torch's documentation of CrossEntropyLoss: scores need not be positive or sum to
    one; Lu 2019 (arXiv 1903.06733) on dead ReLUs.
    """
    return _taken_away(scene, RELUS)


@remedy("linear-output", "data", cures=("G303", "G602"), size=2)
def linear_output(scene: Scene) -> Change:
    """Take away a tanh or sigmoid behind the last layer.

    Targets beyond its range saturate it, where its slope is zero.

    **When it fails.** A binary cross-entropy needs probabilities: there it is unfit, `with-logits`
    is for it. Targets within the range lose a bound that helped.

    **Reference.** Bishop 1995 (Neural Networks for Pattern Recognition), section 6.1: linear
    outputs go with the sum of squares.
    """
    if _needs_probabilities(scene):
        raise Unfit("The loss is a binary cross-entropy, which needs probabilities.")
    return _taken_away(scene, BOUNDED)


def _taken_away(scene: Scene, kinds: Sequence[str]) -> Change:
    if scene.loss is None:
        raise Unfit("The loss of the first batch cannot be computed again here.")
    calls = [part for part in parts_of(scene) if part.kind == "activation"]
    ends = [part for part in calls if part.before and not part.after and _kind(part) in kinds]
    others = [part for part in calls if part not in ends]
    names = dict.fromkeys(part.name for part in ends if part.name)
    alone = [name for name in names if all(part.name != name for part in others)]
    used = {one for part in others for one in part.called}
    written = [one for part in ends if not part.name for one in part.called if one not in used]
    if not alone and not written:
        raise Unfit(f"No activation of the kinds {', '.join(kinds)} stands behind the last layer.")
    patch = LINES.format(names=listed(alone)) if alone else ""
    carry_out(scene, patch)
    notes = [
        f"# at the end of the forward pass: {one.__name__}(x) -> x; the model gives scores then"
        for one in written
    ]
    return Change(
        "\n".join([*([patch] if patch else []), *notes]),
        functions=dict.fromkeys(written, _identity),
        imitates=bool(written),
    )


def _identity(input: Tensor, *_: Any, **__: Any) -> Tensor:
    """Return the input, in the place of a torch function."""
    return input


def _kind(part: Part) -> str:
    subject = part.subject
    name = subject.function.__name__ if isinstance(subject, Call) else type(subject).__name__
    return name.rstrip("_").lower()


def _needs_probabilities(scene: Scene) -> bool:
    """Whether a binary cross-entropy of probabilities is computed in a pass."""
    met: list[Function] = []

    def noting(*args: Any, **kwargs: Any) -> Any:
        met.append(F.binary_cross_entropy)
        return F.binary_cross_entropy(*args, **kwargs)

    with Instead({F.binary_cross_entropy: noting}):
        first_loss(scene)
    return bool(met)
