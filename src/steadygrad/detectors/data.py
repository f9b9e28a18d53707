"""Data and targets: their scale, their labels, and what exponentials and roots make of them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from steadygrad.core.finding import Advice, Finding, Severity, detector
from steadygrad.core.record import Record

Fact = Mapping[str, Any]  # JSON-like, see core.record.Facts
SQUARED = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "squared difference")
BINARY = ("binary_cross_entropy", "binary_cross_entropy_with_logits")
LARGE = ("G101", "G103", "G105", "G202", "G301", "G302", "G401", "G403", "G006")


# --- Inputs ---------------------------------------------------------------------------------------


@detector(
    "G601",
    "unscaled-input",
    needs=("inputs",),
    explains=(*LARGE, "G602", "G102", "G104", "G106", "G201"),
)
def unscaled_input(
    record: Record, *, size: float = 50.0, consequence: float = 20.0, columns: float = 1e3
) -> Iterator[Finding]:
    """Inputs in units that the first layer was not made for: raw pixels, euros, years, ids.

    What it looks at: the root mean square of what enters the first layer with weights, after
    whatever the model does to it before, and of what that layer puts out. It takes more than `size`
    going in, more than `consequence` coming out, and no norm in between or right behind: then every
    layer works at that scale (50 lies between raw values of a few tens, which train, and pixels of
    0 to 255, whose RMS is 85 to 150; both chosen by us). One feature `columns` times larger than
    the median one is reported as well, since it alone decides what the layer puts out.

    Why it matters: the first layer's gradient is as many times larger as its input, so that an lr
    fit for the others makes it diverge, and the curvature grows with the square.

    When it is wrong: a first layer whose weights learn slowly on purpose.

    What to try: standardise the inputs, per feature; or put a norm in front.

    References: LeCun 1998, Efficient BackProp, section 4.3.
    """
    for row in record.facts["inputs"]:
        layer = row.get("layer") or {}
        if not layer or layer["normed"] or layer["rms_in"] is None or layer["rms_out"] is None:
            continue
        loud = size < layer["rms_in"] < math.inf and layer["rms_out"] > consequence
        uneven = layer["raw"] and row.get("feature_rms", 0.0) > columns * row.get("median_rms", 1.0)
        if loud or (uneven and row["feature_rms"] > size):
            yield _unscaled(row, layer, uneven)


def _unscaled(row: Fact, layer: Fact, uneven: bool) -> Finding:
    if uneven:
        says = (
            f"feature {row['feature']} of {row['name']} has a root mean square of "
            f"{row['feature_rms']:.3g} where the median feature has {row['median_rms']:.3g}: "
            f"{layer['module'] or 'the first layer'} sees nothing else"
        )
    else:
        says = (
            f"{row['name']} enters {layer['module'] or 'the first layer'} with a root mean square "
            f"of {layer['rms_in']:.3g} (mean {row['mean']:.3g}, deviation {row['std']:.3g}) and "
            f"leaves it with {layer['rms_out']:.3g}; nothing normalises it"
        )
    if row["whole"] and row["peak"] > 255:
        says += "; they are whole numbers: ids belong into an embedding"
    patch = "x = (x - x.mean(0)) / (x.std(0) + 1e-6)  # with the statistics of the training set"
    evidence = {"rms": layer["rms_in"], "rms_out": layer["rms_out"], "mean": row["mean"]}
    evidence |= {"std": row["std"]}
    return Finding(
        Severity.risk,
        says,
        ("data",),
        evidence,
        try_next=(Advice("standardise", patch),),
        magnitude=math.log10(max(layer["rms_in"], 1.0)),
    )


# --- Targets --------------------------------------------------------------------------------------


@detector("G602", "unscaled-target", needs=("losses",), explains=("G401", "G402", "G412", "G006"))
def unscaled_target(
    record: Record, *, far: float = 100.0, ratio: float = 30.0
) -> Iterator[Finding]:
    """Targets of a regression that are far from anything the network puts out.

    What it looks at: the root mean square of the targets of a squared or absolute loss, against
    that of the predictions and against one, the order of what a fresh network puts out whatever its
    units. More than `far` and more than `ratio` times the predictions is a risk, `ratio` alone a
    note (chosen by us; targets of a few units train well). A loss that is divided by a statistic of
    the data is normalised and left alone; multiplying it by a constant changes nothing here.

    Why it matters: under SGD the first gradient is as large as the targets and the first step
    destroys the weights; under Adam, whose steps have the size of the lr, the way there takes about
    target / lr steps.

    When it is wrong: a bias of the last layer set to the targets' mean makes it harmless.

    What to try: standardise the targets and undo it when predicting.

    References: Stack Overflow 52800582 (targets of 1e8).
    """
    for one in record.facts["losses"]:
        target, given = one["target"], one["input"]
        if one["name"] not in SQUARED or one["divided"] or "rms" not in target:
            continue
        size, mine = target["rms"], given.get("rms", 0.0)
        if size > ratio * max(mine, 1.0):
            says = (
                f"the targets of {one['name']} have a mean of {target['mean']:.4g} and a deviation "
                f"of {target['std']:.4g}, the predictions a root mean square of {mine:.3g}: "
                f"they start {size / max(mine, 1.0):.2g} times too small"
            )
            patch = "y = (y - y_mean) / y_std  # of the training set; undo it when predicting"
            yield Finding(
                Severity.risk if size > far else Severity.note,
                says,
                ("target",),
                {"target_rms": size, "target_mean": target["mean"], "prediction_rms": mine},
                try_next=(Advice("standardise-target", patch),),
                magnitude=math.log10(size / max(mine, 1.0)),
            )


@detector(
    "G603", "label-out-of-range", needs=("losses",), explains=("G003", "G004", "G602", "G202")
)
def label_out_of_range(record: Record, *, total: float = 0.05) -> Iterator[Finding]:
    """Labels or scores that the loss has no meaning for.

    What it looks at: targets of binary cross-entropy outside [0, 1]; scores given to nll_loss that
    are no log-probabilities, whose exponentials do not sum to one (`total` allows for bfloat16) on
    any axis.
    Labels outside the classes make torch raise; `explain_exception` says so in the same words.

    Why it matters: the loss has no lower bound, and training follows it to minus infinity.

    When it is wrong: nll_loss used on purpose as a plain selection of scores.

    What to try: map labels to 0 .. C-1, masks to 0 and 1; cross_entropy on the scores themselves.

    References: pytorch#2623 (negative binary cross-entropy), pytorch#1204 (device-side assert).
    """
    for one in record.facts["losses"]:
        target = one["target"]
        if one["name"] in BINARY and "min" in target:
            if target["min"] < 0 or target["max"] > 1:
                yield _outside(one)
        elif one.get("log_total", 0.0) > total and one.get("softmax_axis") is None:
            yield _no_probabilities(one)


def _outside(one: Fact) -> Finding:
    low, high = one["target"]["min"], one["target"]["max"]
    says = (
        f"the targets of {one['name']} reach from {low:.4g} to {high:.4g} where it takes 0 to 1: "
    )
    says += "it has no lower bound then"
    says += f" and is {one['value']:.3g} already" if one["value"] < 0 else ""
    patch = f"y = y / {high:g}" if low >= 0 else "y = (y > 0).float()"
    advice = (Advice("map-to-0-and-1", patch),)
    return Finding(
        Severity.broken,
        says,
        ("target",),
        {"min": low, "max": high},
        try_next=advice,
        magnitude=3.0,
    )


def _no_probabilities(one: Fact) -> Finding:
    raw = one["input"].get("min", -1.0) >= 0.0
    kind = "probabilities" if raw else "scores"
    says = f"nll_loss is given {kind} where it takes log-probabilities"
    says += ": it is negative and falls without a lower bound" if one["value"] < 0 else ""
    advice = (Advice("cross-entropy", "F.cross_entropy(scores, y)  # scores: before any softmax"),)
    evidence = {"log_total": one["log_total"], "loss": one["value"]}
    return Finding(Severity.risk, says, ("loss",), evidence, try_next=advice, magnitude=2.0)


EXCEPTIONS = (
    (
        r"Target (-?\d+) is out of bounds",
        "label {0} lies outside of the classes: they must be 0 to C-1 for C scores",
        "target",
        "assert 0 <= y.min() and y.max() < model(x).shape[1]\ny = y - y.min()  # labels from one",
    ),
    (
        r"Assertion `?t >= 0 && t < n_classes|device-side assert",
        "a label lies outside of the classes (CUDA says so late): labels are 0 to C-1 for C scores",
        "target",
        "assert 0 <= y.min() and y.max() < model(x).shape[1]",
    ),
    (
        r"index out of range in self",
        "an index lies beyond the rows of an embedding",
        "data",
        "assert x.max() < embedding.num_embeddings",
    ),
    (
        r"all elements of input should be between 0 and 1",
        "binary_cross_entropy is given scores where it takes probabilities",
        "loss",
        "F.binary_cross_entropy_with_logits(scores, y)",
    ),
    (
        r"all elements of target should be between 0 and 1",
        "the targets of binary_cross_entropy lie outside of 0 to 1",
        "target",
        "y = (y > 0).float()",
    ),
    (
        r"Class values must be (smaller than num_classes|non-negative)",
        "a label lies outside of the classes given to one_hot",
        "target",
        "F.one_hot(y, int(y.max()) + 1)",
    ),
)

UNREACHED = (
    r"element 0 of tensors does not require grad",
    "nothing that requires a gradient leads to the loss: all parameters are frozen, or detach(), "
    "no_grad, argmax, or .item() stands between them and it",
    "loss",
    "assert loss.requires_grad  # then look where `.requires_grad` turns False, from the model on",
)


def explain_exception(error: BaseException) -> Finding | None:
    """Translate what torch raises over a label or a loss without gradient; None for the rest."""
    for row in (*EXCEPTIONS, UNREACHED):
        pattern, says, where, patch = row
        match = re.search(pattern, str(error))
        if match:
            unreached = row is UNREACHED
            return Finding(
                Severity.broken,
                says.format(*match.groups()),
                (where,),
                {"exception": f"{type(error).__name__}: {error}".splitlines()[0]},
                try_next=(Advice("follow-requires-grad" if unreached else "map-labels", patch),),
                magnitude=4.0,
                code="G501" if unreached else "G603",
                name="no-gradient" if unreached else "label-out-of-range",
            )
    return None


@detector(
    "G604",
    "empty-supervision",
    needs=("nonfinite", "loss"),
    explains=("G003", "G004", "G303", "G501", "G102", "G402"),
)
def empty_supervision(record: Record) -> Iterator[Finding]:
    """A batch in which nothing is supervised: every label ignored, every weight or mask zero.

    What it looks at: labels that are neither ignored nor of weight zero; a division of zero by zero
    in the loss; CTC inputs shorter than their targets plus repeats; a loss that is exactly zero
    with a gradient that is exactly zero.

    Why it matters: a mean over nothing is NaN, though its gradient is zero: the run looks exploded
    and is merely empty. A sum over nothing is zero for ever.

    When it is wrong: one batch may be empty by chance; a hinge may be satisfied.

    What to try: skip the batch, or divide by at least one; look at the mask.

    References: pytorch#70348, #116349 (all -100); wenet#2299 (CTC).
    """
    found = [one for one in record.facts.get("losses") or [] if _is_empty(one)]
    event, outcome = record.facts["nonfinite"]["forward"], record.facts["loss"]
    if found:
        yield _empty(found[0])
    elif event and _zero_by_zero(event):
        says = "the loss divides zero by zero: its mask or its weights leave nothing to be averaged"
        patch = "loss = (losses * mask).sum() / mask.sum().clamp_min(1)"
        yield _unsupervised(says, patch, Severity.broken, {})
    elif (
        outcome.get("blocked") and record.facts["nonfinite"]["no_gradient"] and not outcome["value"]
    ):
        says = "the loss and its gradient are exactly zero: nothing is asked of the network"
        yield _unsupervised(says, "", Severity.risk, {"loss": 0.0})
    yield from _too_short(record)


def _is_empty(one: Fact) -> bool:
    return bool(one.get("effective") == 0 and one.get("labels"))


def _zero_by_zero(event: Fact) -> bool:
    values = list(event["values"].values())
    divides = event["inner"].startswith("div") and event["module"] is None and event["trained"]
    return divides and len(values) == 2 and {float(v) for v in values if _is_number(v)} == {0.0}


def _is_number(value: str) -> bool:
    return re.fullmatch(r"-?[\d.e+-]+|-?inf|nan", value) is not None


def _empty(one: Fact) -> Finding:
    light = one.get("weightless", 0)
    why = "are ignored" if not light else "are ignored or have weight zero"
    says = f"all {one['labels']} labels of {one['name']} {why}: the loss is {one['value']:.3g} "
    says += "and its gradient exactly zero"
    patch = "if (y != -100).any():\n    loss.backward()"
    evidence = {"labels": float(one["labels"]), "ignored": float(one["ignored"])}
    return _unsupervised(says, patch, Severity.broken, evidence)


def _unsupervised(says: str, patch: str, severity: Severity, evidence: dict[str, float]) -> Finding:
    advice = (Advice("skip-empty", patch),) if patch else ()
    return Finding(severity, says, ("target", "loss"), evidence, try_next=advice, magnitude=5.0)


def _too_short(record: Record) -> Iterator[Finding]:
    broken = bool(record.facts["nonfinite"]["loss"])
    for one in record.facts.get("losses") or []:
        if one.get("too_short"):
            sample, given, needed = one["too_short"][0]
            says = (
                f"CTC cannot align {len(one['too_short'])} of the samples: sample {sample} has "
                f"{given} steps and needs {needed} (its labels plus one per repeat)"
            )
            patch = "F.ctc_loss(..., zero_infinity=True)  # or less downsampling before it"
            evidence = {"too_short": float(len(one["too_short"]))}
            yield _unsupervised(says, patch, Severity.broken if broken else Severity.note, evidence)


# --- What becomes of them -------------------------------------------------------------------------


@detector(
    "G605",
    "exploding-head",
    needs=("exponentials", "nonfinite"),
    explains=("G002", "G003", "G004", "G006", "G101", "G103", "G401", "G602"),
)
def exploding_head(record: Record, *, largest: float = 20.0) -> Iterator[Finding]:
    """An exponential of a prediction that nothing bounds.

    What it looks at: every exp (and cosh, sinh) of the pass whose input comes from a layer. An
    output whose norm is above e**20 (5e8; chosen by us: log-variances and log-rates of healthy
    networks start within a few units of zero) is a risk, as is an exponent that comes straight from
    a layer with a root mean square above 20; one that overflows is broken when the loss or its
    gradient does too.

    Why it matters: the gradient of an exponential is as large as its value; e**88.7 is infinite in
    float32, e**11.1 in float16.

    When it is wrong: an exponential whose result is divided by its own sum.

    What to try: clamp the exponent, softplus in place of exp, or a small weight in that head.

    References: synthcity#331 (clamp to [-30, 20]), NVAE#27, pytorch_geometric#500.
    """
    facts = record.facts["nonfinite"]
    broken = bool(facts["loss"] or facts["gradients"] or facts["nan_outputs"])
    for one in record.facts["exponentials"]:
        huge = one["log_norm"] >= largest * math.log10(math.e)
        wide = one["free"] is not None and one["free"] >= math.log10(largest)
        if not one["feeder"] or not (huge or wide):
            continue
        yield _exploding(one, broken)
        return


def _exploding(one: Fact, broken: bool) -> Finding:
    infinite = one["log_norm"] == math.inf
    size = "infinity" if infinite else f"a norm of 1e{one['log_norm']:.0f}"
    place = one["module"] or ("the loss" if one["module"] is None else "the model")
    file, line = one["line"]
    says = f"{one['op']} in {place} of what {one['feeder']} puts out comes to {size}: "
    says += "nothing bounds the exponent" + (f" ({file}:{line})" if file else "")
    advice = (
        Advice("clamp-exponent", "x.clamp(-20, 10).exp()"),
        Advice("softplus", "F.softplus(x) + 1e-6"),
    )
    return Finding(
        Severity.broken if infinite and broken else Severity.risk,
        says,
        (one["feeder"],),
        {"result": "inf"} if infinite else {"log10_norm": one["log_norm"]},
        try_next=advice,
        magnitude=4.0,
    )


@detector(
    "G606",
    "singular-normalisation",
    needs=("singular", "below_eps"),
    explains=("G101", "G006", "G401", "G103"),
)
def singular_normalisation(record: Record, *, steep: float = 4.0) -> Iterator[Finding]:
    """A zero vector is normalised: finite forward, a gradient of 1e12 backward.

    What it looks at: every division of the pass (those inside normalize and cosine_similarity, too)
    that has a denominator below 1e-6 under a numerator no larger, and multiplies the largest
    gradient that really arrives there by more than a million, a thousandth of which reaches a
    parameter; a zero row whose gradient is masked, before it or behind it, is left alone. So is a
    norm layer looked at whose deviation is below 1e-5. A norm whose input's variance is below its
    eps restores no scale: a note, and a risk where the gradient grows by more than 10**`steep`.

    Why it matters: one all-zero row (a blank image, a padded sample, a dead ReLU without bias)
    takes over the whole gradient, and clipping then silences all others.

    When it is wrong: under clipping by value it may only be noise.

    What to try: a larger eps, a bias before the norm, leave the empty rows out.

    References: measured: F.normalize 1e12, cosine_similarity 7e7 at zero.
    """
    for one in record.facts["singular"][:1]:
        yield _singular(one)
    yield from _below_eps(record.facts["below_eps"], steep)


def _below_eps(norms: Sequence[Fact], steep: float) -> Iterator[Finding]:
    """Norms whose input lies below their eps, as one finding, the steepest first."""
    if not norms:
        return
    ordered = sorted(norms, key=lambda one: -one["log_gain"])
    worst = ordered[0]
    steeply = worst["log_gain"] > steep
    others = f" (and {len(ordered) - 1} others alike)" if len(ordered) > 1 else ""
    says = (
        f"{worst['module']}{others} gets a signal of root mean square 1e{worst['log_rms']:.1f}, "
        f"below its eps of {worst['eps']:g}, and multiplies gradients by 1e{worst['log_gain']:.1f}"
    )
    patch = f"model.get_submodule({worst['module']!r}).eps = 1e-5"
    yield Finding(
        Severity.risk if steeply else Severity.note,
        says,
        tuple(one["module"] for one in ordered),
        {"log10_rms": worst["log_rms"], "eps": worst["eps"]},
        confidence="measured" if steeply else "possible",
        try_next=(Advice("larger-eps", patch),),
        magnitude=worst["log_gain"],
    )


def _singular(one: Fact) -> Finding:
    place = "the loss" if one["module"] is None else one["module"] or "the model"
    rows = ", ".join(str(row) for row in one["rows"])
    file, line = one["line"]
    says = (
        f"{one['op']} in {place} divides by {one['denominator']:.1g}, since its input is zero in "
        f"rows {rows}: it multiplies the gradient by {one['gain']:.1g}"
        + (f" ({file}:{line})" if file else "")
    )
    patch = "F.normalize(x, dim=-1, eps=1e-3)  # cosine_similarity takes eps too"
    names = (
        (one["module"] or "", one["feeder"])
        if one["module"] is not None
        else (one["feeder"], "loss")
    )
    where = tuple(dict.fromkeys(name for name in names if name)) or ("",)
    evidence = {"gain": one["gain"], "denominator": one["denominator"]}
    advice = (Advice("larger-eps", patch), Advice("leave-out", "x = x[x.norm(dim=-1) > 0]"))
    return Finding(
        Severity.risk, says, where, evidence, try_next=advice, magnitude=math.log10(one["gain"])
    )
