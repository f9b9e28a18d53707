"""The end of the network: what it squashes before a loss that wanted something else."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from steadygrad.core.finding import Advice, Finding, Severity, detector
from steadygrad.core.record import Record

Fact = Mapping[str, Any]  # JSON-like, see core.record.Facts
SQUARED = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "squared difference")
UNREACHED = {"relu": "below_zero", "sigmoid": "beyond_one", "tanh": "beyond_one"}


@detector(
    "G303",
    "blocked-output",
    needs=("loss", "output_end"),
    explains=("G102", "G104", "G105", "G302", "G402", "G501", "G602"),
)
def blocked_output(record: Record) -> Iterator[Finding]:
    """What stands between the layers and the loss lets little or nothing of its gradient pass.

    What it looks at: a dropout with p = 1, whose output is all zero: torch's p is the share that is
    dropped, not the share that is kept. Then the op whose output the loss was given, views apart.
    A softmax over one unit and a cross-entropy over one class are constant: broken. A last ReLU of
    which every output is zero: broken; before a cross-entropy, one that is zero for every sample in
    a class that has labels: a risk. A softmax (or sigmoid) before cross_entropy, which takes the
    softmax itself, and a sigmoid before binary_cross_entropy_with_logits: a risk, since the loss
    keeps a floor (ln(e + C - 1) - 1, 1.46 for ten classes) and passes a fraction of the gradient,
    as measured (0.12 for ten classes, 0.003 for a thousand: broken below 0.05). log_softmax twice
    is harmless and not reported. Targets of which more than 60 % lie beyond what the last tanh,
    sigmoid or ReLU can put out. A sigmoid that is exactly 0 or 1 for most samples, most of them
    wrongly.

    Why it matters: training stalls at a loss that looks like a bad lr.

    When it is wrong: probabilities that are meant to be targets of a softmax again.

    What to try: take the squashing away and give the loss the scores.

    References: MobileNetV2.pytorch#5, Co-teaching#4; fact 17 of our own measurements.
    """
    yield from _dropped(record)
    end = record.facts["output_end"]
    losses = record.facts.get("losses") or []
    if not losses and end.get("width") == 1 and "softmax" in end["op"]:
        yield _constant(end, "output")
    for one in losses:
        found = next((f for f in (look(one) for look in LOOKS) if f is not None), None)
        if found is not None:
            yield found
            return
    outcome = record.facts["loss"]
    if outcome.get("blocked") and record.facts["nonfinite"]["no_gradient"] and outcome["value"]:
        says = "the gradient of the loss at the model's outputs is exactly zero"
        yield Finding(Severity.broken, says, ("loss",), {"loss": outcome["value"]}, magnitude=5.0)


def _dropped(record: Record) -> Iterator[Finding]:
    """Dropouts that leave nothing: broken where all samples come out alike, a risk in a branch."""
    rows = record.facts.get("dropped") or []
    if not rows:
        return
    first, names = rows[0], tuple(dict.fromkeys(row["module"] or "" for row in rows))
    alike = not record.facts.get("flow", {}).get("spread_out", 0.0) > 0
    p = "" if math.isnan(first["p"]) else f" (p = {first['p']:g})"
    says = (
        f"everything is dropped: {first['op']} in {names[0] or 'the model'}{p} puts out zeros only"
    )
    says += " in training, and no gradient passes back; p is the share that is dropped"
    yield Finding(
        Severity.broken if alike else Severity.risk,
        says,
        names,
        {"p": first["p"], "dropouts": float(len(rows))},
        try_next=(Advice("lower-dropout", "nn.Dropout(p=0.1)  # 1 - the share that is kept"),),
        magnitude=9.0,
    )


def _constant(end: Fact, what: str) -> Finding:
    says = f"a softmax over one unit is 1 whatever its input: the {what} is constant"
    says += " and every gradient exactly zero"
    advice = (Advice("sigmoid", "F.binary_cross_entropy_with_logits(scores, y)  # no softmax"),)
    return Finding(
        Severity.broken, says, _where(end), {"units": 1.0}, try_next=advice, magnitude=9.0
    )


def _where(end: Fact) -> tuple[str, ...]:
    """The module that squashes, or, where that is the root, the layer before; the loss itself."""
    names = [name for name in (end["module"], end["feeder"]) if name]
    return (*names, "loss") if end["module"] is not None else ("loss", *names)


def _one_unit(one: Fact) -> Finding | None:
    if one["end"]["width"] == 1 and "softmax" in one["end"]["op"]:
        return _constant(one["end"], "prediction")
    if one.get("classes") == 1 and one["name"] == "cross_entropy":
        says = "cross_entropy over one class is zero whatever is predicted"
        patch = "F.binary_cross_entropy_with_logits(scores.squeeze(1), y.float())"
        advice = (Advice("binary", patch),)
        return Finding(
            Severity.broken, says, ("loss",), {"classes": 1.0}, try_next=advice, magnitude=9.0
        )
    return None


def _softmax_twice(one: Fact, *, lost: float = 0.05) -> Finding | None:
    end, classes = one["end"], one.get("classes", 0)
    if one["name"] != "cross_entropy" or end["op"] not in ("softmax", "sigmoid"):
        return None
    if end["op"] == "softmax" and not one.get("probabilities"):
        return None
    factor = one.get("softmax_factor", 1.0)
    passed = f" and {factor:.2g} of the gradient passes" if "softmax_factor" in one else ""
    says = (
        f"a {end['op']} stands before cross_entropy, which takes the softmax itself: the loss of "
        f"{classes} classes cannot fall below {_floor(classes):.3g}{passed}"
    )
    advice = (Advice("give-scores", f"{_identity(end)}# give cross_entropy the scores"),)
    return Finding(
        Severity.broken if factor < lost else Severity.risk,
        says,
        _where(end),
        {"gradient_factor": factor, "classes": float(classes)},
        try_next=advice,
        magnitude=4.0,
    )


def _floor(classes: int) -> float:
    """The least cross-entropy of scores between 0 and 1: -ln(e / (e + C - 1))."""
    return math.log(math.e + classes - 1) - 1


def _identity(end: Fact) -> str:
    name = end["module"]
    return f"model.set_submodule({name!r}, nn.Identity())  " if name else ""


def _sigmoid_twice(one: Fact) -> Finding | None:
    if one["name"] != "binary_cross_entropy_with_logits" or one["end"]["op"] != "sigmoid":
        return None
    says = (
        "a sigmoid stands before binary_cross_entropy_with_logits, which takes the sigmoid itself: "
        "no prediction can fall below 0.5, and at most a quarter of the gradient passes"
    )
    advice = (Advice("give-scores", f"{_identity(one['end'])}# give the loss the scores"),)
    evidence = {"loss": one["value"]}
    return Finding(
        Severity.risk, says, _where(one["end"]), evidence, try_next=advice, magnitude=3.0
    )


def _shut(one: Fact) -> Finding | None:
    if one["end"]["op"] != "relu" or one["input"].get("zeros") != 1.0:
        return None
    says = "every prediction is zero behind the last ReLU: no gradient passes it"
    advice = (Advice("no-last-relu", f"{_identity(one['end'])}# no ReLU at the output"),)
    return Finding(
        Severity.broken, says, _where(one["end"]), {"zeros": 1.0}, try_next=advice, magnitude=8.0
    )


def _saturated(one: Fact, *, most: float = 0.5, wrong: float = 3.0) -> Finding | None:
    share = one.get("saturated", 0.0)
    if one["name"] != "binary_cross_entropy" or one["end"]["op"] != "sigmoid" or share < most:
        return None
    if one["value"] < wrong:
        return None
    says = (
        f"{share:.0%} of the probabilities are exactly 0 or 1 at a loss of {one['value']:.3g}: "
        "the sigmoid before binary_cross_entropy is saturated and passes no gradient"
    )
    patch = "F.binary_cross_entropy_with_logits(scores, y)"
    advice = (Advice("with-logits", f"{_identity(one['end'])}# {patch}"),)
    evidence = {"saturated": share, "loss": one["value"]}
    return Finding(
        Severity.broken, says, _where(one["end"]), evidence, try_next=advice, magnitude=6.0
    )


def _unreached(one: Fact, *, most: float = 0.6) -> Finding | None:
    end = one["end"]
    key = UNREACHED.get(end["op"])
    if key is None or one["name"] not in SQUARED or key not in one:
        return None
    low = {"sigmoid": "below_zero", "tanh": "below_minus_one"}.get(end["op"])
    share = one[key] + (one[low] if low else 0.0)
    if share < most:
        return None
    target = one["target"]
    says = (
        f"{share:.0%} of the targets ({target['min']:.3g} to {target['max']:.3g}) lie beyond what "
        f"the last {end['op']} can put out: it saturates and the loss stays"
    )
    advice = (Advice("linear-output", f"{_identity(end)}# or scale the targets into its range"),)
    return Finding(
        Severity.risk, says, _where(end), {"beyond": share}, try_next=advice, magnitude=3.0
    )


def _shut_classes(one: Fact) -> Finding | None:
    if not one.get("shut"):
        return None
    shut, classes = one["shut"], one["classes"]
    says = (
        f"{len(shut)} of {classes} classes ({shut[0]}, ...) score zero for every sample behind the "
        "last ReLU: no gradient passes it, so that they are never predicted"
    )
    advice = (Advice("no-last-relu", f"{_identity(one['end'])}# no ReLU at the output"),)
    evidence = {"shut": float(len(shut)), "classes": float(classes)}
    return Finding(
        Severity.risk, says, _where(one["end"]), evidence, try_next=advice, magnitude=4.0
    )


LOOKS = (_one_unit, _softmax_twice, _sigmoid_twice, _shut, _shut_classes, _saturated, _unreached)
