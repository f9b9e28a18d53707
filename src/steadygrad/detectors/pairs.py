"""Losses that compare every prediction with every target."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from steadygrad.core.finding import Advice, Finding, Severity, detector
from steadygrad.core.record import Record


@detector(
    "G607",
    "broadcast-loss",
    needs=("pairs",),
    explains=("G303", "G401", "G402", "G411", "G412", "G602"),
)
def broadcast_loss(record: Record) -> Iterator[Finding]:
    """A loss of n predictions [n, 1] and n targets [n] that compares each with all: n * n pairs.

    **What it looks at.** The two arguments of mse_loss, l1_loss, smooth_l1_loss, huber_loss and
    their kin, and of differences and products written by hand outside of the model, that hold
    equally many values in another number of axes, so that both are broadcast. It counts only when
    the targets differ and the loss weighs all pairs of a prediction (or of a target) alike, which
    the gradient at the pairs tells: then nothing says which target belongs to which prediction.
    There is no threshold.

    **Why it matters.** The mean over all pairs is least when every prediction is the mean of the
    targets: the network learns that constant, and the loss stays at the variance of the targets.
    A product of n log-probabilities and n rewards pays every action the mean reward. torch warns of
    it in its own losses only, once, and not of a difference written by hand.

    **When it is wrong.** Distances between two sets whose mean over all pairs is wanted, one of
    them with an axis inserted and the other without. Axes inserted in both are left alone, as are
    losses that pick or weigh pairs (quantile regression, nearest centers, kernels), and targets
    that are all equal (the ones and zeros of a GAN).

    **What to try.** Give both the same shape: `prediction.squeeze(-1)`, or `target[:, None]`.

    **References.** torch's own warning: "Using a target size that is different to the input size.
    This will likely lead to incorrect results due to broadcasting."
    """
    for one in record.facts["pairs"][:1]:
        shapes = f"{one['prediction']} and {one['target']}"
        file, line = one["line"]
        product = one["name"] == "product"
        by_hand = product or one["name"] == "difference"
        says = f"the {one['name']} in the loss" if by_hand else one["name"]
        says += f" takes {shapes} and broadcasts them to {one['pairs']}: every "
        says += (
            "value is multiplied by every other's weight, so that only their means count"
            if product
            else "prediction is compared with every target, so that only their mean is learned"
        )
        yield Finding(
            Severity.broken,
            says + (f" ({file}:{line})" if file else ""),
            ("loss",),
            {"pairs": float(prod(one["pairs"])), "predictions": float(prod(one["prediction"]))},
            try_next=(
                Advice("same-shape", "assert prediction.shape == y.shape  # y = y[:, None]"),
            ),
            magnitude=6.0,
        )
